"""The `her2` command: options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

SpecOption = Annotated[str, typer.Option("--spec", help="what the job depends on, as JSON")]
SlidesOption = Annotated[Path, typer.Option("--slides", help="the manifest (.csv, .parquet)")]
RootOption = Annotated[Path | None, typer.Option("--root", help="where relative paths start")]
CacheOption = Annotated[
    Path, typer.Option("--cache", envvar="HER2_CACHE", help="the content-addressed cache")
]
OutOption = Annotated[Path, typer.Option("--out", help="what the job writes")]
ThreadsOption = Annotated[int, typer.Option("--threads", min=1)]
FoldsOption = Annotated[Path, typer.Option("--folds", help="folds table of the task")]
ModelsOption = Annotated[Path, typer.Option("--models", help="folder of the chunks' manifests")]
TilesOption = Annotated[Path, typer.Option("--tiles", help="folder of the grids' folders")]
FeaturesOption = Annotated[Path, typer.Option("--features", help="folder of feature manifests")]
