# SPDX-License-Identifier: Apache-2.0
"""What would be uploaded of a pipeline, a LoRA, a stereo network or a Space, checked, and the upload of exactly that.

Nothing here asks the Hub but `push` and `push_collection`. A folder is never changed: where the card of the repository
has to say more than the card of the folder (the repository's name, data sets, figures, a picture), the upload carries
the completed text. One commit holds all files, so a repository is never half new.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import CommitOperationAdd, HfApi, SpaceCard
from huggingface_hub.utils import validate_repo_id

from pipeline_zerostereo import PIPELINE_FILE, SHIM_FILE
from training.public_parts import KNOWN_REPOSITORIES
from training.publishing_card import CARD, CardAdditions, complete_card
from training.stereo_network_card import network_card, network_class

PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")  # can run code when they are loaded
TEXTS = (".json", ".md", ".py", ".txt", ".yaml", ".yml")
LORA_FILE = "pytorch_lora_weights.safetensors"
NETWORK_FILE = "diffusion_pytorch_model.safetensors"
SPACE_WEIGHTS = "weights/zerostereo-tiny"  # where the Space looks for weights of its own
SPACE_VARIABLE = "ZEROSTEREO_WEIGHTS"  # names weights that are elsewhere
SPACE_COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SPACE_SDKS = ("gradio", "docker", "static")
COPY_OF_LICENCE = "openrail++ asks for a copy of itself beside the weights: put it into the folder as LICENSE"
LONGEST_DESCRIPTION = 150  # characters, of a collection


@dataclass(frozen=True)
class Upload:
    """Everything that one command puts into one repository.

    Attributes:
        repo_id: USER/NAME.
        repo_type: "model" or "space".
        files: path on this machine, or content, by path in the repository.
        notes: what is not as in the folder, for people.
        sdk: of a Space.
        variables: of a Space.
    """

    repo_id: str
    repo_type: str
    files: dict[str, Path | bytes]
    notes: tuple[str, ...] = ()
    sdk: str | None = None
    variables: dict[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Return a line for each file with its size in bytes, and the notes."""
        sizes = {name: len(one) if isinstance(one, bytes) else one.stat().st_size for name, one in self.files.items()}
        lines = [f"{size:>12,}  {name}" for name, size in sizes.items()]
        lines += [f"variable {name}={value}" for name, value in self.variables.items()]
        lines += [f"note: {note}" for note in self.notes]
        total = f"{len(sizes)} files, {sum(sizes.values()) / 1e6:.1f} MB, for the {self.repo_type} {self.repo_id}"
        return "\n".join([*lines, total])


class Item(NamedTuple):
    """Something that a collection lists: "model", "dataset", "space" or "paper", and its id."""

    kind: str
    id: str


# --- what is uploaded ---


def check_repo_id(repo_id: str) -> None:
    """Raise a ValueError unless an id is USER/NAME as the Hub allows it."""
    validate_repo_id(repo_id)
    if repo_id.count("/") != 1:
        raise ValueError(f"`REPO` must be USER/NAME; got {repo_id}.")


def list_files(folder: Path) -> dict[str, Path | bytes]:
    """Return the files of a folder by their path in it, in order; hidden ones and Python's caches are left out.

    Raises:
        FileNotFoundError: no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"`DIR` must be a folder; got {folder}.")
    found: dict[str, Path | bytes] = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        left_out = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not left_out:
            found["/".join(parts)] = path
    return found


def check_model_files(folder: Path, files: dict[str, Path | bytes], required: tuple[str, ...]) -> None:
    """Raise a ValueError where something is missing, could run code, or tells of this machine."""
    missing = [name for name in required if name not in files]
    if missing:
        raise ValueError(f"`DIR` must hold {list(required)}; {folder} lacks {missing}.")
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        raise ValueError(
            f"`DIR` must hold weights as safetensors only; got {pickles}, which can run code when loaded."
        )
    for name, path in files.items():
        if isinstance(path, Path) and name.endswith(TEXTS):
            check_no_local_path(name, path.read_text(encoding="utf-8"))


def check_no_local_path(name: str, text: str) -> None:
    """Raise a ValueError where a text names the home or the working directory of this machine."""
    for place in (str(Path.home()), str(Path.cwd())):
        if len(Path(place).parts) > 1 and f"{place}/" in text:
            raise ValueError(f"`DIR` must tell nothing of this machine; {name} names {place}. Export it again.")


def unstated_sources(files: dict[str, Path | bytes]) -> list[str]:
    """Return the repositories that parts of a pipeline come from and whose authors state no licence."""
    found = set()
    for path in files.values():
        if isinstance(path, Path) and path.name == "config.json":
            source = str(json.loads(path.read_text(encoding="utf-8")).get("_name_or_path", "")).partition("@")[0]
            known = KNOWN_REPOSITORIES.get(source)
            found |= {source} if known is not None and not known.is_stated else set()
    return sorted(found)


def check_permission(card_licence: Any, files: dict[str, Path | bytes], has_permission: bool) -> None:
    """Raise a ValueError where parts of a pipeline or LoRA may not be passed on as far as anybody knows."""
    reasons = unstated_sources(files) + (["weights of unknown licence"] if card_licence == "unknown" else [])
    if reasons and not has_permission:
        raise ValueError(
            f"`DIR` must hold weights whose authors state a licence; got {', '.join(reasons)}. Pass "
            "--i-have-permission if they allowed you to publish them."
        )


def pipeline_upload(folder: Path, repo_id: str, additions: CardAdditions, has_permission: bool = False) -> Upload:
    """Return the upload of a folder that `training.export_pipeline` or `training.train_inpainting` made.

    Args:
        folder: of the pipeline.
        repo_id: USER/NAME.
        additions: to its card.
        has_permission: the authors of weights of unstated licence allowed it.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is no complete pipeline folder, names paths of this machine, or may not be published.
    """
    return _model_upload(folder, repo_id, additions, has_permission, ("model_index.json", PIPELINE_FILE, SHIM_FILE))


def lora_upload(folder: Path, repo_id: str, additions: CardAdditions, has_permission: bool = False) -> Upload:
    """Return the upload of a LoRA that `training.train_inpainting` made; arguments and errors as `pipeline_upload`."""
    return _model_upload(folder, repo_id, additions, has_permission, (LORA_FILE,))


def _model_upload(
    folder: Path, repo_id: str, additions: CardAdditions, has_permission: bool, required: tuple[str, ...]
) -> Upload:
    check_repo_id(repo_id)
    files = list_files(folder)
    check_model_files(folder, files, (*required, CARD))
    completed = complete_card((folder / CARD).read_text(encoding="utf-8"), repo_id, additions)
    check_permission(completed.licence, files, has_permission)
    lacks_copy = completed.is_restricted and not any(name.upper().startswith("LICEN") for name in files)
    notes = (*completed.notes, *((COPY_OF_LICENCE,) if lacks_copy else ()))
    return Upload(repo_id, "model", {**files, **completed.files}, notes)


def network_upload(folder: Path, repo_id: str, additions: CardAdditions, trained_with: str = "") -> Upload:
    """Return the upload of a stereo network that `save_pretrained` wrote, with a card of its own or one made here.

    Args:
        folder: of the network.
        repo_id: USER/NAME.
        additions: to its card; the licence has to be among them where the folder has no card.
        trained_with: command of the training, for a card made here.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it is no stereo network of this project, or has neither card nor licence.
    """
    check_repo_id(repo_id)
    files = list_files(folder)
    check_model_files(folder, files, ("config.json", NETWORK_FILE))
    network_class(folder)
    own = CARD in files
    text = (
        (folder / CARD).read_text(encoding="utf-8") if own else network_card(folder, repo_id, additions, trained_with)
    )
    completed = complete_card(text, repo_id, additions)
    notes = completed.notes if own else ("the card is made from training/stereo_network_card.md", *completed.notes)
    return Upload(repo_id, "model", dict(sorted({**files, **completed.files}.items())), notes)


def space_upload(folder: Path, repo_id: str, weights: str | None) -> Upload:
    """Return the upload of a Space.

    Args:
        folder: with app and README.md.
        repo_id: USER/NAME.
        weights: id of a pipeline on the Hub, which the Space is told by a variable; or a pipeline folder, uploaded
            beside it; None = the folder has them itself.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: the front matter would be refused, a file that it names is missing, or nobody says which weights.
    """
    check_repo_id(repo_id)
    files = list_files(folder)
    missing = [name for name in (CARD, "requirements.txt") if name not in files]
    if missing:
        raise ValueError(f"`DIR` must be the folder of a Space; {folder} lacks {missing}.")
    sdk = check_space_card((folder / CARD).read_text(encoding="utf-8"), files)
    variables, notes = {}, ()
    if weights is None:
        if not any(name.startswith(f"{SPACE_WEIGHTS}/") for name in files):
            raise ValueError(f"`--weights` must name a pipeline; {folder} has none in {SPACE_WEIGHTS}/.")
    elif Path(weights).is_dir():
        own = list_files(Path(weights))
        check_model_files(Path(weights), own, ("model_index.json", PIPELINE_FILE, SHIM_FILE))
        files |= {f"{SPACE_WEIGHTS}/{name}": path for name, path in own.items()}
        notes = (f"the weights of {Path(weights).name} go with it",)
    else:
        check_repo_id(weights)
        variables = {SPACE_VARIABLE: weights}
    return Upload(repo_id, "space", files, notes, sdk, variables)


def check_space_card(text: str, files: dict[str, Path | bytes]) -> str:
    """Return the SDK that the front matter of a Space names.

    Raises:
        ValueError: the Hub would refuse it or the Space could not start; says why.
    """
    data = SpaceCard(text).data.to_dict()
    faults = [name for name in ("title", "license") if not data.get(name)]
    faults += [name for name in ("colorFrom", "colorTo") if data.get(name, SPACE_COLORS[0]) not in SPACE_COLORS]
    faults += [] if data.get("sdk") in SPACE_SDKS else ["sdk"]
    if data.get("sdk") == "gradio":
        faults += [] if data.get("sdk_version") else ["sdk_version"]
        faults += [] if data.get("app_file", "app.py") in files else ["app_file"]
    faults += ["short_description"] if len(data.get("short_description") or "") > 60 else []
    if faults:
        raise ValueError(
            f"`{CARD}` of a Space must have title, license, sdk and sdk_version, an app_file that exists, colours of "
            f"{', '.join(SPACE_COLORS)}, and at most 60 characters of short_description; wrong: {faults}."
        )
    return str(data["sdk"])


# --- the upload ---


def push(upload: Upload, api: HfApi, private: bool, message: str) -> str:
    """Put the files into a repository, made if missing, in one commit; return where it is.

    Args:
        upload: as described.
        api: of the Hub.
        private: the repository must be private.
        message: of the commit.

    Raises:
        ValueError: it must be private, and it exists and is public; or the Hub refuses the front matter.
        HfHubHTTPError: any other refusal of the Hub.
    """
    repo_id, repo_type = upload.repo_id, upload.repo_type
    api.create_repo(repo_id, repo_type=repo_type, private=private or None, space_sdk=upload.sdk, exist_ok=True)
    if private and not api.repo_info(repo_id, repo_type=repo_type).private:
        raise ValueError(
            f"`--private` needs a private repository; got {repo_id}, which exists and is public. "
            "Make it private on the Hub first, or choose another name."
        )
    for name, value in upload.variables.items():  # before the files, which start the Space
        api.add_space_variable(repo_id, name, value)
    operations = [CommitOperationAdd(name, one) for name, one in upload.files.items()]
    commit = api.create_commit(repo_id, operations, repo_type=repo_type, commit_message=message)
    others = sorted(set(api.list_repo_files(repo_id, repo_type=repo_type)) - set(upload.files) - {".gitattributes"})
    kept = f"\nalso there, and not of this upload: {', '.join(others)}" if others else ""
    return f"{commit.repo_url} at {commit.oid}{kept}"


def check_collection(title: str, owner: str, description: str, items: list[Item]) -> None:
    """Raise a ValueError where the Hub would refuse a collection."""
    if not title.strip() or "/" in owner or not owner:
        raise ValueError(f"`OWNER` must be a user or organisation and `TITLE` words; got {owner!r} and {title!r}.")
    if len(description) > LONGEST_DESCRIPTION:
        raise ValueError(
            f"`--description` must have at most {LONGEST_DESCRIPTION} characters; got {len(description)}."
        )
    if not items:
        raise ValueError("`collection` needs something to list: --models, --data-sets, --spaces or --papers.")
    for item in items:
        if item.kind != "paper":
            check_repo_id(item.id)


def push_collection(title: str, owner: str, description: str, items: list[Item], api: HfApi, private: bool) -> str:
    """Make a collection, or go on with the one of this title, and add what it lacks; return its URL.

    Raises:
        HfHubHTTPError: the Hub refuses; one of the items may not exist.
    """
    collection = api.create_collection(
        title, namespace=owner, description=description or None, private=private, exists_ok=True
    )
    for item in items:
        kind: Any = item.kind
        api.add_collection_item(collection.slug, item.id, kind, exists_ok=True)
    return collection.url
