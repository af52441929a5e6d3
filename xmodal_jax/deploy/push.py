"""Upload of an export to the Hugging Face Hub."""

from __future__ import annotations

import os
import pathlib


def check_token() -> None:
    """Raises ValueError if there is no token to upload with."""
    import huggingface_hub

    if not huggingface_hub.get_token():
        raise ValueError(
            "--push needs a token that may write: set HF_TOKEN, or log in with `hf auth login`. Nothing was written"
        )


def push(folder: str | os.PathLike, repository: str, *, private: bool = False) -> str:
    """Uploads the files of an export, and nothing else, as one commit; returns the address of the repository.

    Args:
      folder: of the export.
      repository: ``OWNER/NAME``; it is made if it does not exist.
      private: whether a new repository is private.

    Raises:
      ValueError: there is no token, the name is none of a repository, or the Hub refuses.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    check_token()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    api = huggingface_hub.HfApi()  # HF_ENDPOINT names another server
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        name = pathlib.Path(folder).name
        api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=f"Export {name}")
    except HFValidationError as error:
        raise ValueError(f"--push {repository}: give OWNER/NAME ({error})") from error
    except (
        OSError,
        *HfHubHTTPError.__bases__,
    ) as error:  # the bases: those of whatever HTTP library the Hub's uses
        raise ValueError(
            f"--push {repository}: {str(error).splitlines()[0]}; the export itself is in {folder}"
        ) from error
    return str(address)
