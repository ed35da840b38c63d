"""`python -m app` is the `bitserve` command."""

from app.cli import main

if __name__ == "__main__":
    main()
