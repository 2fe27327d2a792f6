"""`python -m her2`: the same as the `her2` command; the form that workflow rules use."""

from her2.cli.main import main

if __name__ == "__main__":
    main()
