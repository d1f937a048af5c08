"""What can go wrong with machines, as a caller may react to it.

VmError                    base: `code` is stable, `detail` is for people
├── MachineGone            no machine of that id runs here (any more)
├── MachineExists          a machine of that id runs already
├── MachineFailed          it did not start, or died; `detail` says why
├── HostFull               no room on this host now (disk, memory, or too many queued); try later or elsewhere
├── ImageMissing           the guest image asked for is not on this host
├── StreamReset            a guest stream broke off: the guest, its agent, the node or the peer gave it up
├── NodeUnreachable        the node process does not answer
├── NotAllowed             the capability does not cover this verb or machine
└── HypervisorError        libvirt or QEMU said something nobody planned for
"""

from __future__ import annotations


class VmError(Exception):
    """Base of this tree; crosses the node's API as its `code` and `detail`."""

    code = "vm_error"

    def __init__(self, detail: str = "") -> None:
        super().__init__(detail or self.code)
        self.detail = detail


class MachineGone(VmError):
    """No machine of that id runs here."""

    code = "machine_gone"


class MachineExists(VmError):
    """A machine of that id runs already."""

    code = "machine_exists"


class MachineFailed(VmError):
    """The machine did not come up, or died."""

    code = "machine_failed"


class HostFull(VmError):
    """This host has no room for it now."""

    code = "host_full"


class ImageMissing(VmError):
    """The guest image is not on this host."""

    code = "image_missing"


class StreamReset(VmError):
    """A guest stream broke off before its end."""

    code = "stream_reset"


class NodeUnreachable(VmError):
    """The node process does not answer."""

    code = "node_unreachable"


class NotAllowed(VmError):
    """The capability does not cover this."""

    code = "not_allowed"


class HypervisorError(VmError):
    """libvirt or QEMU failed in a way nobody planned for."""

    code = "hypervisor_error"


BY_CODE: dict[str, type[VmError]] = {
    kind.code: kind
    for kind in (
        VmError,
        MachineGone,
        MachineExists,
        MachineFailed,
        HostFull,
        ImageMissing,
        StreamReset,
        NodeUnreachable,
        NotAllowed,
        HypervisorError,
    )
}
