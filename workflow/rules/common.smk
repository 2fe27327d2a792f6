"""Read and check the config and the cohort once, and define the names that the rules use.

Parse time reads `config.yaml` and the manifest, and writes nothing.
"""

import re
import shlex
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

# The folder of this workflow, also where another one uses it as a module. A module loaded from the
# web comes without the package, which then has to be installed.
HERE = Path(str(workflow.current_basedir)).parent.parent
IS_CLONE = (HERE / "her2").is_dir()
if IS_CLONE:
    sys.path.insert(0, str(HERE))

from her2.config.names import folds_name
from her2.core.errors import UserError
from her2.pipeline.clocks import accept_clock_skew
from her2.pipeline.inputs import check_folders
from her2.pipeline.progress import ProgressPrinter
from her2.pipeline.wiring import ResultFiles, growing, one_of, option, read_plan, untracked

try:
    check_folders(Path.cwd(), *([HERE] if IS_CLONE else []))
    PLAN = read_plan(config, check_files=workflow.is_main_process, configfiles=workflow.configfiles)
except UserError as error:
    raise WorkflowError(str(error)) from None

if IS_CLONE:
    # Lets jobs find it in every kind of environment (conda unsets PYTHONPATH before this).
    shell.prefix(f"set -euo pipefail; export PYTHONPATH={shlex.quote(str(HERE))}; ")

PROGRESS = ProgressPrinter(PLAN)
if workflow.is_main_process and workflow.modifier.is_main_snakefile():
    PROGRESS.listen()
accept_clock_skew()
CONFIG = PLAN.config
FILES = ResultFiles(PLAN, workflow)
RESULTS = FILES.root
ROOT = str(PLAN.cohort.root)
EXTERNAL = r"validation/[A-Za-z0-9][A-Za-z0-9._-]*/"
CACHE = untracked(str(CONFIG.cache_folder))
SLIDES = FILES.of_cohort(
    lambda own: ["--slides", str(own.config.cohort.slides), "--root", str(own.cohort.root)]
)


# On a cluster these run on the machine of Snakemake: the first may need a network, and the others
# take seconds, less than a wait in the queue.
localrules:
    materialise_encoder,
    fetch_segmenter,
    describe_features,
    audit_cohort,
    tabulate_cohort,
    audit_overlap,
    compare_encoders,
    check_apart,
    compare_external,


# `cohort` is the folder of a cohort in the results: empty for that of the development, which all rules
# without this wildcard are of, or validation/NAME/ for an external one.
wildcard_constraints:
    cohort=f"(?:{EXTERNAL})?",
    slide=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    grid=r"[0-9]+px-[0-9.e+-]+mpp|given-[A-Za-z0-9][A-Za-z0-9._-]*",
    bucket=r"[0-9]+-of-[0-9]+",
    task=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    encoder=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    head=r"[A-Za-z0-9][A-Za-z0-9._-]*",
    chunk=r"r[0-9]+f[0-9]+(?:s[0-9]+)?-r[0-9]+f[0-9]+(?:s[0-9]+)?",
