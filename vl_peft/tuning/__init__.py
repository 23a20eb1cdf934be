"""Tuning strategies: which parameters are added to a frozen backbone, and which train."""

from vl_peft.tuning.adapter import Adapter
from vl_peft.tuning.base import PerTask, Route, Sharing, Site, Tuning
from vl_peft.tuning.full import FullFineTuning

__all__ = ["Adapter", "FullFineTuning", "PerTask", "Route", "Sharing", "Site", "Tuning"]
