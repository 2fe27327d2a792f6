"""Every preset is an experiment that begins, on its cohort as it is published."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from her2.config import Config, load_config
from her2.encoders.catalogue import find_row
from her2.importing.preset import FOLDER
from her2.importing.registry import find_source, source_names
from her2.pipeline.external import configured_plan
from her2.pipeline.trial import plan_problems
from tests.unit import published
from tests.unit.test_cli import command

PRESETS = sorted(path.name for path in FOLDER.glob("*.yaml"))
