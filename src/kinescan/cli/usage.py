"""What a wrong command line is answered with, beyond what is wrong: the option or the setting that was meant."""

import difflib
import inspect
import os
import re
import typing
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

import kinescan
from kinescan.cli.output import GLOBAL

UsageError: Any = typer.BadParameter.__mro__[1]
"""Of the library that parses command lines, which typer carries with it or depends on, by version."""

_RECIPE_VERBS = ("train", "demo")
_OTHER_NAMES = {
    "data": "data.train",
    "videos": "data.train",
    "model": "model.name",
    "workers": "loader.num_workers",
    "learning_rate": "optim.lr",
    "gpu": "train.device",
    "frames": "preprocessing.num_frames",
    "views": "evaluation.views",
}
_MODEL_FIRST = {"eval": "kinescan eval RUN", "export": "kinescan export RUN FOLDER", "profile": "kinescan profile RUN"}


_OTHERWISE = {
    ("eval", "predictions"): "Detections are an argument: kinescan eval RESULTS.json --data TRUTH",
    ("eval", "results"): "Detections are an argument: kinescan eval RESULTS.json --data TRUTH",
    ("eval", "thresholds"): "Thresholds are chosen with --set thresholds=choose",
    ("eval", "choose_thresholds"): "Thresholds are chosen with --set thresholds=choose",
}
"""Options that a verb does not have, and what does the same."""


class Verb(TyperCommand):
    """A verb whose usage errors say what to write instead."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The same, with advice where something cannot be understood."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except UsageError as error:
            flags = sorted({flag for parameter in self.params for flag in parameter.opts if flag.startswith("--")})
            advice = _advice(self, error, str(ctx.info_name), given, [*flags, *GLOBAL])
            if advice:
                error.message = f"{error.message} {advice}"
                if hasattr(error, "possibilities"):
                    error.possibilities = None
            raise


def _advice(command: TyperCommand, error: Any, verb: str, given: Sequence[str], flags: Sequence[str]) -> str:
    option = getattr(error, "option_name", None)
    if isinstance(option, str):
        if option in flags:  # known, and used in a wrong way, which the error says
            return ""
        return _for_option(option, verb, given, flags)
    if isinstance(error, typer.BadParameter):
        return _for_choice(command.callback, getattr(error.param, "name", ""), given)
    settings = [word for word in given if re.fullmatch(r"[A-Za-z_][\w.]*=.*", word, re.DOTALL)]
    if settings and "--set" in flags and given[given.index(settings[0]) - 1] != "--set":
        return f"Settings are given with --set: --set {settings[0]}"
    paths = [word for word in given[1:] if os.path.exists(word)]
    if verb == "eval" and paths:
        return f"Videos are given with --data: --data {paths[-1]}"
    if verb == "train" and paths:
        return f"Videos are given with --set: --set data.train={paths[-1]}"
    return ""


def _for_choice(function: Any, name: str | None, given: Sequence[str]) -> str:
    """The choice that a word of the line is close to, where the parameter takes choices, such as motion for moton."""
    hint = typing.get_type_hints(inspect.unwrap(function)).get(str(name))
    choices = [choice for part in (hint, *typing.get_args(hint)) for choice in typing.get_args(part)]
    choices = [choice for choice in choices if isinstance(choice, str)]
    for word in given:
        near = "" if word in choices else _did_you_mean(word.rpartition("=")[2], choices)
        if near:
            return near
    return ""


def _for_option(option: str, verb: str, given: Sequence[str], flags: Sequence[str]) -> str:
    name = option.lstrip("-").replace("-", "_")
    if (verb, name) in _OTHERWISE:
        return _OTHERWISE[verb, name]
    if name == "model" and verb in _MODEL_FIRST:
        return f"The model is an argument: {_MODEL_FIRST[verb]}"
    near = _did_you_mean(option, flags)
    if near or verb not in _RECIPE_VERBS:
        return near or f"Options: {', '.join(flags)}"
    names = kinescan.config.setting_names()
    meant = [dotted for dotted in names if dotted.rpartition(".")[2] == name] or [
        dotted for dotted in (_OTHER_NAMES.get(name),) if dotted
    ]
    if not meant:
        leaves = {dotted.rpartition(".")[2]: dotted for dotted in names}
        meant = [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, n=1, cutoff=0.7)]
    if not meant:
        return f"Options: {', '.join(flags)}; settings of the recipe are given as --set KEY=VALUE"
    return f"Settings of the recipe are given with --set: --set {meant[0]}={_value_of(option, given)}"


def _value_of(option: str, given: Sequence[str]) -> str:
    for index, word in enumerate(given):
        if word.startswith(f"{option}="):
            return word.partition("=")[2]
        if word == option and index + 1 < len(given) and not given[index + 1].startswith("-"):
            return given[index + 1]
    return "VALUE"


def _did_you_mean(word: str, allowed: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, allowed, n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else ""
