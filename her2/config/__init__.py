"""Before every stage: the whole `config.yaml` as typed, documented and validated values.

The Snakefile and the command line read a config through `load_config` or `parse_config`, so a
wrong key gives the same error everywhere. `her2 config schema` prints the JSON schema
of these models for editors.
"""

from her2.config.check import Config, load_config, parse_config, parse_section
from her2.config.data import (
    CohortSection,
    PatchesSection,
    PatchFormat,
    PatientLabel,
    Task,
    TilingSection,
    UnmappedLabels,
)
from her2.config.encoders import (
    EmbeddingSection,
    EncoderSection,
    Precision,
    PretrainingSection,
)
from her2.config.given import AnyEncoder, GivenSection
from her2.config.heads import HeadSection
from her2.config.learning import (
    Balance,
    EvaluationSection,
    FoldsSection,
    GroupingSection,
    HeatmapFormat,
    HeatmapSection,
    ReportSection,
    SeededTrainingSection,
    Select,
    TrainingSection,
)
from her2.config.validation import ExternalTaskSection, ValidationSection
from her2.core.section import (
    KEEP_ORDER,
    NAME_PATTERN,
    ClassName,
    Count,
    Mpp,
    Name,
    Ordered,
    Positive,
    Section,
    Share,
)
from her2.core.types import Domain, Feature

__all__ = [
    "KEEP_ORDER",
    "NAME_PATTERN",
    "AnyEncoder",
    "Balance",
    "ClassName",
    "CohortSection",
    "Config",
    "Count",
    "Domain",
    "EmbeddingSection",
    "EncoderSection",
    "EvaluationSection",
    "ExternalTaskSection",
    "Feature",
    "FoldsSection",
    "GivenSection",
    "GroupingSection",
    "HeadSection",
    "HeatmapFormat",
    "HeatmapSection",
    "Mpp",
    "Name",
    "Ordered",
    "PatchFormat",
    "PatchesSection",
    "PatientLabel",
    "Positive",
    "Precision",
    "PretrainingSection",
    "ReportSection",
    "Section",
    "SeededTrainingSection",
    "Select",
    "Share",
    "Task",
    "TilingSection",
    "TrainingSection",
    "UnmappedLabels",
    "ValidationSection",
    "load_config",
    "parse_config",
    "parse_section",
]
