"""A package of your own: two methods, a data set, a metric and a callback."""
