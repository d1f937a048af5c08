"""The one place that knows libvirt's errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import libvirt

from vm.errors import HostFull, HypervisorError, MachineExists, MachineGone, VmError

_BY_CODE: dict[int, type[VmError]] = {
    libvirt.VIR_ERR_NO_DOMAIN: MachineGone,
    libvirt.VIR_ERR_OPERATION_INVALID: MachineGone,  # "domain is not running"
    libvirt.VIR_ERR_DOM_EXIST: MachineExists,
    libvirt.VIR_ERR_NO_MEMORY: HostFull,
}
_NO_ROOM = ("No space left on device", "Cannot allocate memory", "cannot set up guest memory")


@contextmanager
def translated() -> Iterator[None]:
    """Turn libvirt's one error class into the VmError a caller can act on."""
    try:
        yield
    except libvirt.libvirtError as error:
        said = str(error)
        kind = _BY_CODE.get(error.get_error_code(), HypervisorError)
        if any(words in said for words in _NO_ROOM):
            kind = HostFull
        raise kind(said[:1000]) from error
