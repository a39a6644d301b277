"""Where Optuna keeps a study: what can be wrong with it, told in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .errors import BadInput, Interrupted, Missing, UsageError, first_line

# The packages of modules that SQLAlchemy looks for.
DRIVERS = {
    "psycopg": "psycopg[binary]",
    "psycopg2": "psycopg2-binary",
    "MySQLdb": "mysqlclient",
    "mysql": "mysql-connector-python",
    "pymysql": "PyMySQL",
}


def need_optuna() -> Any:
    """The module optuna, quiet. Raises Missing where the package is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise Missing(
            "'pipeline sweep' needs the package optuna",
            "run \"pip install 'pi-pipeline[sweep]'\"",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


@contextmanager
def reaching(url: str) -> Iterator[str]:
    """What can be wrong with a storage, as an error; gives its URL without the password."""
    from sqlalchemy import exc, make_url

    optuna = need_optuna()
    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except exc.ArgumentError as error:
        raise UsageError(
            "--storage: not the URL of a database", "give one as postgresql://HOST/NAME"
        ) from error
    try:
        yield shown
    except KeyboardInterrupt as error:
        raise Interrupted(
            "interrupted; the finished trials are kept", "call it again to go on"
        ) from error
    except exc.NoSuchModuleError as error:
        raise UsageError(
            f"{shown}: no such kind of database is known",
            "give postgresql://, mysql+pymysql:// or sqlite:///FILE",
        ) from error
    except ImportError as error:
        lacking = error.__cause__ or error
        package = DRIVERS.get(getattr(lacking, "name", None) or "")
        raise Missing(
            f"{shown}: the driver of that database cannot be loaded ({first_line(lacking)})",
            f"run 'pip install {package}'" if package else "install it",
        ) from error
    except (exc.OperationalError, optuna.exceptions.StorageInternalError) as error:
        cause = first_line(getattr(error, "orig", None) or error.__cause__ or error)
        raise Missing(
            f"{shown}: cannot be reached ({cause})", "check --storage and that it is running"
        ) from error
    except exc.DatabaseError as error:
        raise BadInput(
            f"{shown}: is not a study's database ({first_line(error.orig or error)})",
            "give another --storage",
        ) from error
