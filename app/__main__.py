"""`python -m app` is the `bitserve` command."""

from app.cli import console

if __name__ == "__main__":
    console()
