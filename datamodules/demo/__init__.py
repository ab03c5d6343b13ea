"""A small data set that is drawn, not photographed: twelve categories in MVTec's layout, with exact masks.

scene.py says what a drawing is; textures.py and objects.py draw flawless ones; defects.py damages them; photo.py adds
light and noise; render.py puts one image together; generate.py writes a data set; settings.py fixes seeds and splits.
"""
