"""Named data sets, deterministic views of them, and the order in which they are read."""

from limbeck.data.adapt import as_source
from limbeck.data.load import load_data
from limbeck.data.loader import Loader
from limbeck.data.source import DataInfo, Source, datasets
from limbeck.data.views import View

__all__ = ["DataInfo", "Loader", "Source", "View", "as_source", "datasets", "load_data"]
