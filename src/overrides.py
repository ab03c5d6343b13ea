"""What Hydra refuses when it composes a configuration, in one line that says what was meant. Imports nothing heavy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException
from yaml import MarkedYAMLError

CONF = Path(__file__).resolve().parents[1] / "conf"
ADDED = ("+exp", "+sweep", "+debug")
"""The groups of `conf/` from which nothing is chosen by default."""

_CHOSEN_BY = {"train_data": "data@train_data", "metrics": "metrics"}  # nodes that are not there by default
_BY_NAME = ("callbacks", "logger", "metrics")  # nodes that hold any number of others
_LISTS_ALL = ("src.", "datamodules.", "hydra.")  # all arguments of the classes in these packages are listed
_LITERAL = (
    r"\+{0,2}(source|category|test_data\.category|references|threshold|ckpt_path|paths\.\w+|(?!hydra\.)[\w.]+\.root)"
)
# As Hydra reads its command line: short options may stand together, a long one may be cut, and modes have a number.
_SWEEPS = r"-[hr]*m.*|--m\w*|\+{0,2}hydra\.mode=.*(MULTIRUN|2).*"
_RUN_DIR = "hydra.run.dir"  # Lightning gives it to the processes that it starts, between quotes and not escaped
_CLOSE = 0.65  # as difflib measures it


def explain(error: BaseException) -> str | None:
    """Tell in one line what Hydra, OmegaConf or YAML found wrong; None if the error is of none of them.

    Example:
        >>> from omegaconf import OmegaConf
        >>> node = OmegaConf.create({"model": {"smoothing_sigma": 8}})
        >>> OmegaConf.set_struct(node, True)
        >>> try:
        ...     node.model.smoothing_sima = 4
        ... except ConfigAttributeError as error:
        ...     explain(error)
        "unknown configuration key 'model.smoothing_sima'; did you mean 'model.smoothing_sigma'?"
    """
    if isinstance(error, MarkedYAMLError):
        return _describe_yaml(error)
    if isinstance(error, MissingConfigException):
        return _describe_missing(error)
    if isinstance(error, OverrideParseException):
        reason = _one_line(str(error.__cause__ or error.__context__ or error).partition("\nSee http")[0])
        return f"can't read the option '{error.override}' ({reason}); write KEY=VALUE, and quotes around other signs"
    if isinstance(error, ConfigCompositionException):
        return _describe_composition(error)
    if isinstance(error, (ConfigKeyError, ConfigAttributeError)) and isinstance(error.parent_node, DictConfig):
        return _describe_unknown(error.parent_node, str(error.full_key), "")
    if isinstance(error, OmegaConfBaseException):
        reason = _one_line(str(error).partition("\n    full_key")[0])
        return f"{error.full_key}: {reason}" if error.full_key else reason
    return _one_line(str(error)) if isinstance(error, HydraException) else None


def literal(arguments: Sequence[str]) -> list[str]:
    """Quote the values that a user types as they are, so that Hydra's grammar takes them so.

    Paths and names of objects may hold commas, brackets, quotes, `=` and any letters. `null` stays null, and an
    interpolation `${...}` is still resolved. In a sweep Hydra reads all values: there a comma separates trials.

    Args:
        arguments: of a command.

    Example:
        >>> literal(["category=nut, 5 mm", "test_data.root=/my [photos]", "seed=7", "ckpt_path=null"])
        ["category='nut, 5 mm'", "test_data.root='/my [photos]'", 'seed=7', 'ckpt_path=null']
        >>> literal(["-m", "category=nut,bolt"])
        ['-m', 'category=nut,bolt']
    """
    if any(re.fullmatch(_SWEEPS, argument) for argument in arguments):
        return list(arguments)
    return [_quoted(argument) for argument in arguments]


def typed(override: str) -> str:
    """An override as one types it for a single run: the way back from `literal`.

    Args:
        override: in Hydra's grammar, as `literal` or a sweep has made it.

    Example:
        >>> typed("category='nut, 5 mm'"), typed("seed='7'")
        ('category=nut, 5 mm', "seed='7'")
    """
    key = override.partition("=")[0]
    if not re.fullmatch(_LITERAL, key):
        return override
    try:
        value = OverridesParser.create().parse_override(override).value()
    except HydraException:  # Hydra has put the value of an interpolation between the quotes, and that has quotes, too
        return override
    return f"{key}={value}" if isinstance(value, str) else override


def _quoted(argument: str) -> str:
    key, _, value = argument.partition("=")
    if key == _RUN_DIR and len(value) > 1 and value[0] == value[-1] == '"':
        value = value[1:-1]
    elif not re.fullmatch(_LITERAL, key) or value in ("", "null"):
        return argument
    # Between quotes of the other kind, those of an interpolation such as ${oc.env:NAME,'a b'} need no backslash, which
    # OmegaConf would not read.
    quote = Quote.double if "'" in value and '"' not in value else Quote.single
    return f"{key}={QuotedString(value, quote).with_quotes()}"


def data_set_of(overrides: Sequence[str]) -> str | None:
    """The class of the data set that an experiment tests, by the command line; None if it names none.

    `src.predict` reads folders, whatever an experiment tests, so its own configuration does not say.

    Args:
        overrides: in Hydra's grammar. Hydra has to be initialised.

    Example:
        >>> from hydra import initialize_config_dir
        >>> with initialize_config_dir(str(CONF), version_base="1.3"):
        ...     data_set_of(["+exp=sdp_visa", "seed=7"]), data_set_of(["seed=7"])
        ('datamodules.visa.VisA', None)
    """
    chosen = [one for one in overrides if one.lstrip("+").startswith(("exp=", "data@test_data="))]
    if not chosen:
        return None
    loader = GlobalHydra.instance().config_loader()
    config = loader.load_configuration("train", chosen, RunMode.RUN, from_shell=False, validate_sweep_overrides=False)
    target = config.test_data.get("_target_")
    return None if target is None else str(target)


def did_you_mean(name: str, known: Sequence[str], before: str = "") -> str:
    """The end of a message about an unknown name: the name that was probably meant, or else all known names.

    Args:
        name: what was given.
        known: what there is.
        before: what stands before the name when it is typed, such as `model.`.

    Example:
        >>> did_you_mean("sede", ["seed", "trainer"])
        "; did you mean 'seed'?"
        >>> did_you_mean("x", ["seed", "trainer"])
        '; known: seed, trainer'
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=_CLOSE)
    return f"; did you mean '{before}{close[0]}'?" if close else f"; known: {', '.join(known) or 'none'}"


def _describe_yaml(error: MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"{mark.name}, line {mark.line + 1}: " if mark else ""
    return f"{place}{_one_line(error.problem or error.context or 'no YAML')}"


def _describe_missing(error: MissingConfigException) -> str:
    """An option that its group does not have, such as `model=sdpp`."""
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if not group:
        return _one_line(str(error))
    options = list(error.options or sorted(path.stem for path in (CONF / group).glob("*.yaml")))
    owner = re.match(r"In '(\w+/[^']+)'", str(error))  # the user's file that asks for it, unless the command line does
    place = f"{owner[1]}.yaml: " if owner and not owner[1].startswith("hydra/") else ""
    hint = did_you_mean(option, options)
    all_of_them = "" if hint.startswith("; known") else f" known: {', '.join(options)}"
    return f"{place}the config group '{group}' has no '{option}'{hint}{all_of_them}"


def _describe_composition(error: ConfigCompositionException) -> str:
    text, cause = str(error), error.__cause__ or error.__context__
    if isinstance(cause, (ConfigKeyError, ConfigAttributeError)) and isinstance(cause.parent_node, DictConfig):
        given = typed(text.rpartition("To append to your config use ")[2])
        return _describe_unknown(cause.parent_node, str(cause.full_key), given)
    if isinstance(cause, OmegaConfBaseException):
        first = text.partition("\n")[0].removesuffix(":")
        return f"{first}: {explain(cause)}" if first else str(explain(cause))
    there = re.search(r"An item is already at '(.*)'", text)
    if there:
        return f"{there[1]} is there already; change it without the plus: {there[1]}=VALUE"
    added = re.search(r"No match in the defaults list\.\s+To append to your default list use (.*)", text)
    if added:
        return f"nothing of this config group is chosen yet, so it needs a plus: {added[1]}"
    group = re.search(r"(?:config group|Could not override) '([^'@]+)", text)
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    if group and not (CONF / group[1]).is_dir():
        return f"{_one_line(text).rstrip('.')}{did_you_mean(group[1], groups)}"
    if "Did you mean" in text:  # the group is there, for other nodes; one more would be of no use
        text = text.partition("\nTo append")[0]
    return _one_line(text)


def _describe_unknown(node: DictConfig, full_key: str, override: str) -> str:
    """A key that its node does not have.

    Args:
        node: where the key was looked for.
        full_key: the key, from the root on.
        override: the option that names it, such as `model.x=3`; empty if a file does.
    """
    parents, dot, key = full_key.rpartition(".")
    if not parents and key in _CHOSEN_BY:
        another = f", or add one with a plus: {override}" if override and key in _BY_NAME else ""
        return f"there is no {key} yet; choose one by {_CHOSEN_BY[key]}=NAME{another}"
    known = [str(one) for one in node if one not in ("hydra", "_target_", "_partial_")]
    hint = did_you_mean(key, known if parents else [*known, *ADDED], parents + dot)
    target = str(node["_target_"]) if "_target_" in node else ""
    line = f"unknown configuration key '{full_key}'{hint}"
    if override and target and not target.startswith(_LISTS_ALL):
        return f"{line}; another argument of {target} needs a plus: {override}"
    return f"{line}; a new one needs a plus: {override}" if override and parents in _BY_NAME else line


def _one_line(text: str) -> str:
    return " ".join(text.split())
