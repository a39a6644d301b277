"""The commands that make what is in a run again, with the settings that its contents follow from.

How something is measured, signed or shown is said anew by whoever gives the command.
"""

from __future__ import annotations

from typing import Any

from .precisions import FORMATS, PRECISIONS, USUAL, found_in

Record = dict[str, Any]

OF_COMMANDS = {  # what a command of its own makes
    "self-check.json": "verify --self-check",
    "bench.json": "bench",
    "evaluation.json": "evaluate",
    "calibration.json": "calibrate",
    "sensitivity.json": "sensitivity",
    "report.html": "report",
    "report.json": "report",
    "model-card.md": "report --model-card",
}
OF_TRAINING = (  # settings of TrainConfig that have a value of their own on the command line
    *("model", "dataset", "epochs", "batch_size", "learning_rate", "seed", "activation", "device"),
    *("weight_decay", "label_smoothing"),
)
IMAGES = 1000  # that verify takes where nothing is said
OF_CALIBRATION = {  # settings of Calibration, their options, and what is not said
    "size": ("--calibration-size", 1000),
    "seed": ("--calibration-seed", 0),
    "observer": ("--observer", "auto"),
}


def option_of(setting: str) -> str:
    """The option of `pipeline train` that gives this field of a TrainConfig."""
    return "--lr" if setting == "learning_rate" else f"--{setting.replace('_', '-')}"


def training_options(config: Record) -> list[str]:
    """A TrainConfig on the command line, all of it said but where the data lie."""
    words = []
    for name in OF_TRAINING:
        if config.get(name) is not None:
            words += [option_of(name), str(config[name])]
    words += ["--input-shape", ",".join(str(size) for size in config["input_shape"])]
    distorted = ["--augment", "--distortion", str(config["distortion"])]
    return words + (distorted if config["augment"] else ["--no-augment"])


def command_for(record: Record, filename: str) -> list[str]:
    """The words after `pipeline` of the command that makes an artefact again; `record` is the
    run's.
    """
    config = record["artefacts"].get(filename, {}).get("config", {})
    if filename.endswith(("-fp32.pt2", ".safetensors")):
        return ["train", "--overwrite", *_trained(record)]
    if filename.endswith("-int8.pt2"):
        return _quantized(config)
    if filename == "verify.json":
        return ["verify", *_verified(config)]
    if filename in OF_COMMANDS:
        return OF_COMMANDS[filename].split()
    if filename.endswith((".tar.gz", ".deb")):
        return _packed(record["model"], config, filename)
    if filename.startswith("device-"):
        return ["deploy", config["host"]]
    return _exported(record, filename)


def _trained(record: Record) -> list[str]:
    if "training" not in record:
        return []
    config = record["training"]["config"]
    place = config["data_dir"]
    return [*training_options(config), *(["--data-dir", place] if place else [])]


def _quantized(config: Record) -> list[str]:
    if "qat" in config:
        settings = config["qat"].items()
        return ["train", "--qat", *(w for k, v in settings for w in (option_of(k), str(v)))]
    words = ["quantize"]
    for name, (option, unsaid) in OF_CALIBRATION.items():
        if config.get(name, unsaid) != unsaid:
            words += [option, str(config[name])]
    if config.get("bias_correction") is not None:
        words.append("--bias-correction" if config["bias_correction"] else "--no-bias-correction")
    if config.get("max_drop") is not None:
        words += ["--mixed", "--max-drop", str(config["max_drop"])]
    for name in config.get("keep", ()):
        words += ["--keep", name]
    return words


def _verified(config: Record) -> list[str]:
    kinds = [kind for kind in FORMATS if kind in config.get("formats", ())]
    precisions = [name for name in PRECISIONS if name in config.get("precisions", ())]
    words = _named(kinds, precisions, "--format")
    if config.get("images", IMAGES) != IMAGES:
        words += ["--images", str(config["images"])]
    if config.get("require"):
        words += ["--require", ",".join(config["require"])]
    return words


def _packed(model: str, config: Record, filename: str) -> list[str]:
    words = ["package"]
    for name in ("target", "os"):
        if config.get(name):
            words += [f"--{name}", config[name]]
    files = [*config.get("models", ()), *config.get("c", ())]
    words += _named(*found_in(files, model), "--runtime")
    words += ["--wheelhouse"] if config.get("wheels") else []
    return words + (["--format", "deb"] if filename.endswith(".deb") else [])


def _exported(record: Record, filename: str) -> list[str]:
    """Of all that is exported: what is wrong with one file is mostly wrong with the others, too."""
    if filename.endswith(".pt2"):
        precision = filename.removeprefix(f"{record['model']}-").removesuffix(".pt2")
        return ["export", "--precision", precision]
    there = {*record["artefacts"], filename}
    return ["export", *_named(*found_in(there, record["model"]), "--format")]


def _named(kinds: list[str], precisions: list[str], formats: str) -> list[str]:
    """Formats and precisions on the command line, where they are not the usual ones, or none."""
    words = [formats, ",".join(kinds)] if kinds not in ([], list(FORMATS)) else []
    if precisions not in ([], list(USUAL)):
        words += ["--precision", ",".join(precisions)]
    return words
