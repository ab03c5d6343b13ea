"""The panels of a review, and a workspace and a report that hold them. Needs the extra `review`; asks W&B nothing.

A run is called in W&B as `src.run.trackers` names it, and its values as `src.callbacks.wandb_review` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from wandb_workspaces import workspaces
from wandb_workspaces.reports import v2 as reports

from src.metric_names import METRIC_NAMES
from src.report.media import CHARTS

if TYPE_CHECKING:
    from experiments.review.workspace import Review  # which imports this file where the extra is there

LEVELS = ("image", "single", "pixel")


class Chapter(NamedTuple):
    """Panels that answer one question; the report has the text, too."""

    title: str
    text: str
    panels: list[reports.panels.PanelTypes]


def chapters(review: Review) -> list[Chapter]:
    """What there is to see of a project, from the whole to the single image."""
    return [
        Chapter(
            "Metrics by experiment",
            "The mean over categories. A bar is a group: all runs of an experiment, or all trials of a sweep. With "
            "several seeds it is their mean, and the line on it their standard deviation; a difference that is smaller "
            "is none. Compare only groups that were tested on the same categories: the tags and the configuration's "
            "protocol say on which.",
            [_bars(metric, [f"test/{metric}"]) for metric in review.metrics],
        ),
        Chapter(
            "Categories",
            "The same metrics for each category: a mean hides the category that fails.",
            [
                *(_bars(metric, [f"test/{name}/{metric}" for name in review.categories]) for metric in review.metrics),
                reports.WeavePanelSummaryTable(table_name="test/categories", layout=reports.Layout(w=24)),
            ],
        ),
        Chapter(
            "Search",
            f"A line is a trial, from its settings to {review.objective} of its selected epoch, which is measured on "
            "held-out categories of the training data. A search selects by nothing else; the benchmark is tested once, "
            "with the best trial.",
            [
                reports.ParallelCoordinatesPlot(
                    title=f"settings and {review.objective}",
                    columns=[
                        *(_axis(reports.Config(key), key, is_log) for key, is_log in review.searched.items()),
                        _axis(reports.SummaryMetric(review.objective), review.objective),
                    ],
                    layout=reports.Layout(w=24, h=10),
                ),
                reports.ParameterImportancePlot(with_respect_to=review.objective),
                _line(review.objective, [review.objective]),
            ],
        ),
        Chapter(
            "Training",
            "The loss of the steps and of the epochs, and the learning rate.",
            [
                _line("loss", ["train/loss_step", "train/loss_epoch"]),
                reports.LinePlot(title="learning rate", x="trainer/global_step", metric_regex="lr-.*"),
            ],
        ),
        Chapter(
            "Curves",
            "A line is a category. Image: the score that is fused over the test images of a category. Single: the "
            "score of the image alone. Select one run on the left: lines of several runs have the same names.",
            [_curves(f"{level} {chart}") for level in LEVELS for chart in CHARTS if chart != "PRO" or level == "pixel"],
        ),
        Chapter(
            "Images",
            "The images that say most, first those ranked first: worst misses, worst false alarms, and so on. A row is "
            "a run. Switch the masks on and off: ground_truth is what is wrong, predicted what is above the "
            "threshold of the best pixel F1. The caption says why an image is shown, its score and the decision.",
            [
                reports.MediaBrowser(
                    title=category,
                    media_keys=[f"cases/{category}", f"heat maps/{category}"],
                    grid_x_axis="index",
                    grid_y_axis="run",
                    layout=reports.Layout(w=24, h=10),
                )
                for category in review.categories
            ],
        ),
    ]


def build_workspace(review: Review) -> workspaces.Workspace:
    """A workspace of all chapters, the first two open. It is only saved by its `save()`.

    Example:
        >>> from experiments.review.workspace import Review
        >>> search = {"optimizer.lr": True}
        >>> review = Review("lab", "clip-ad", "Mine", ["cup"], ["pixel_AP"], "selected/pixel_AP", search)
        >>> [section.name for section in build_workspace(review).sections][:2]
        ['Metrics by experiment', 'Categories']
    """
    return workspaces.Workspace(
        entity=review.entity,
        project=review.project,
        name=review.name,
        sections=[
            workspaces.Section(name=chapter.title, panels=chapter.panels, is_open=number < 2)
            for number, chapter in enumerate(chapters(review))
        ],
        runset_settings=workspaces.RunsetSettings(
            pinned_columns=[
                *("run:displayName", "run:group", "run:jobType", "tags:__ALL__"),
                *(f"summary:test/{metric}" for metric in review.metrics),
            ]
        ),
        auto_generate_panels=True,  # what W&B makes itself of histograms, and of what users log
    )


def build_report(review: Review) -> reports.Report:
    """A report of the same panels with explaining text. It is only saved by its `save()`.

    Example:
        >>> from experiments.review.workspace import Review
        >>> search = {"optimizer.lr": True}
        >>> review = Review("lab", "clip-ad", "Mine", ["cup"], ["pixel_AP"], "selected/pixel_AP", search)
        >>> build_report(review).blocks[1]
        H1(text='Metrics by experiment')
    """
    blocks: list[reports.blocks.BlockTypes] = [reports.TableOfContents()]
    for chapter in chapters(review):
        runs = reports.Runset(entity=review.entity, project=review.project, name="runs")
        blocks += [reports.H1(text=chapter.title), reports.P(text=chapter.text)]
        blocks += [reports.PanelGrid(runsets=[runs], panels=chapter.panels)]
    return reports.Report(
        entity=review.entity,
        project=review.project,
        title=review.name,
        description="Zero-shot anomaly detection: what was tested, how well it does, and what it gets wrong.",
        blocks=blocks,
        width="fluid",
    )


def _bars(metric: str, names: list[str]) -> reports.BarPlot:
    """A bar for each name and group, with the deviation over the group's runs."""
    return reports.BarPlot(
        title=metric.replace("_", " "),
        metrics=list(names),
        range_x=(0, 1) if metric in METRIC_NAMES else (None, None),  # a user's own may have any
        groupby="Group",
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_bars_to_show=100,
    )


def _axis(metric: reports.Config | reports.SummaryMetric, name: str, is_log: bool = False) -> object:
    return reports.ParallelCoordinatesPlotColumn(metric=metric, display_name=name, log=is_log)


def _line(title: str, names: list[str]) -> reports.LinePlot:
    return reports.LinePlot(title=title, x="trainer/global_step", y=list(names))


def _curves(name: str) -> reports.CustomChart:
    """The chart that W&B makes of `wandb.plot_table(...)` by itself, where it is wanted."""
    return reports.CustomChart(
        query={"summaryTable": {"tableKey": f"curves/{name}_table"}},
        chart_name="wandb/line/v0",
        chart_fields={"x": "x", "y": "y", "stroke": "category"},
        chart_strings={"title": name},
    )
