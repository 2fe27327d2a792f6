"""The `her2` command, also as `python -m her2`, the form that workflow rules use."""

from her2.core.crashes import survive


def run() -> None:
    """Run the command line in a process whose crash is survived."""
    survive(_command_line)


def _command_line() -> None:
    from her2.cli.main import main  # in the child, so that the parent stays small

    main()


if __name__ == "__main__":
    run()
