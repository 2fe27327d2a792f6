"""The `her2` command: a trained model as one folder or file, and a check of it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from her2.config.validation import Final


class BundleGroup(TyperGroup):
    """`her2 bundle RESULTS` is `her2 bundle make RESULTS`; results called `check` are `./check`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `make` before anything that is none of the commands."""
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["make", *args]
        return super().parse_args(ctx, args)


bundle_app = typer.Typer(
    cls=BundleGroup,
    help="Put a trained model into one folder or file that predicts without its results: `her2 "
    "bundle RESULTS --out BUNDLE`, where `make` may be left out.",
    no_args_is_help=True,
)


@bundle_app.command("make")
def bundle_make(
    results: Annotated[Path, typer.Argument(help="the results folder of a finished run")],
    out: Annotated[Path, typer.Option("--out", help="the bundle to write")],
    task: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    encoder: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    head: Annotated[str | None, typer.Option(help="default: the only one")] = None,
    zipped: Annotated[bool, typer.Option("--zip", help="write one file, not a folder")] = False,
    final: Annotated[
        Final, typer.Option(help="all folds' models, or the one trained on all patients")
    ] = "folds",
    licence: Annotated[
        str, typer.Option(help="licence of the heads, e.g. apache-2.0, for the model card")
    ] = "",
    include_encoder: Annotated[
        str | None,
        typer.Option(
            help="put in an encoder whose licence is not stated: the licence or permission, in "
            "your words, by which you may pass it on"
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace an earlier bundle")] = False,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads")] = 1,
) -> None:
    """Write the bundle of a task, encoder and head."""
    from her2.frozen.bundle.asked import find_model
    from her2.frozen.bundle.write import make_bundle

    made = make_bundle(
        find_model(results, task, encoder, head),
        out,
        zipped=zipped,
        final=final,
        licence=licence,
        permitted=include_encoder,
        force=force,
        threads=threads,
    )
    megabytes = sum(item.bytes for item in made.files.values()) / 1e6
    print(f"{out}: {len(made.files) + 1} files, {megabytes:.1f} MB, digest {made.digest}")
    which = "with" if made.encoder.included else "without"
    print(f"{which} the weights of its encoder {made.encoder.model} ({made.encoder.why})")


@bundle_app.command("check")
def bundle_check(
    bundle: Annotated[Path, typer.Argument(help="a folder or .zip that her2 bundle wrote")],
) -> None:
    """Compare every file of a bundle with its digest, and read its models."""
    from her2.frozen.bundle.read import check_encoder, read_bundle

    found = read_bundle(bundle)
    check_encoder(found)
    size = len(found.schema.files) + 1
    print(f"{bundle}: {found.name}, {size} files, digest {found.schema.digest}: no problems found")
