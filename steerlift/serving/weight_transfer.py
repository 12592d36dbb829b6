"""New weights for the running model from a safetensors file in the server's private folder: any device, same machine.

A trainer writes `weights/NAME` there, with the tensors named as transformers saves them, and posts
{"update_info": {"file": "NAME"}} to /update_weights between /start_weight_update and /finish_weight_update.
"""

import functools
from dataclasses import dataclass

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from steerlift.records.errors import InputError, MissingInputError
from steerlift.serving.private import WEIGHTS, folder_of_this_server, open_private
from steerlift.serving.vllm_private import reload_weights
from steerlift.serving.whole_weights import Shapes, fitting_weights, shapes_of


@dataclass
class FileInitInfo(WeightTransferInitInfo):
    """Nothing needs to be agreed on."""


@dataclass
class FileUpdateInfo(WeightTransferUpdateInfo):
    """Which file: its plain name inside weights/."""

    file: str


class FileEngine(WeightTransferEngine[FileInitInfo, FileUpdateInfo]):
    """The backend `steerlift_file`. Each update is whole or not begun, so a trainer that dies leaves a working model."""

    init_info_cls = FileInitInfo
    update_info_cls = FileUpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: FileInitInfo) -> None:
        """Nothing to do."""

    def start_weight_update(self) -> None:
        """Nothing to do: everything happens in `receive_weights`."""

    def finish_weight_update(self) -> None:
        """Nothing to do: everything has happened in `receive_weights`."""

    def shutdown(self) -> None:
        """Nothing to do."""

    def receive_weights(self, update_info: FileUpdateInfo) -> None:
        """Loads the file. Raises InputError, with the model as it was, for one that is not there, not whole or misshapen."""
        tensors = _read(update_info.file)
        weights = fitting_weights(tensors, self._shapes, f"weights {update_info.file}")
        # One at a time: a whole second copy may not fit on the device.
        on_device = ((name, tensor.to(self.device)) for name, tensor in weights.items())
        reload_weights(self.model, self.model_config, on_device)

    @functools.cached_property
    def _shapes(self) -> Shapes:
        return shapes_of(self.model_config.hf_config, self.model_config.trust_remote_code)


def _read(name: str) -> dict[str, Tensor]:
    folder = folder_of_this_server() / WEIGHTS
    try:
        # Checked, then mapped by its path, since a copy of the weights may not fit beside them; only this user can enter the
        # folder and put another file there in between.
        open_private(folder, name).close()
        tensors: dict[str, Tensor] = load_file(folder / name)
    except FileNotFoundError as error:
        raise MissingInputError(f"weights {name}: no such file in the server's private folder") from error
    except SafetensorError as error:
        raise InputError(f"weights {name}: not a safetensors file ({error})") from error
    return tensors
