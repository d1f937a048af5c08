"""What can go wrong with machines, as a caller may react to it.

VmError                    base: `code` is stable, `detail` is for people
├── MachineGone            no machine of that id runs here (any more)
├── MachineExists          a machine of that id runs already
├── MachineFailed          it did not start, or died; `detail` says why
├── HostFull               no room on this host now (disk, memory, or too many queued); try later or elsewhere
├── VolumeGone             no volume of that id is here
├── VolumeBusy             a machine uses it, or it is a snapshot, which nothing changes
├── NotBootable            there is no system on it
├── VolumeDamaged          its data on the disk is not what was written there
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


class VolumeGone(VmError):
    """No volume of that id is here."""

    code = "volume_gone"


class VolumeBusy(VmError):
    """A machine uses it, or it is a snapshot."""

    code = "volume_busy"


class NotBootable(VmError):
    """There is no system on the volume."""

    code = "not_bootable"


class VolumeDamaged(VmError):
    """Its data on the disk is not what was written there."""

    code = "volume_damaged"


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
        VolumeGone,
        VolumeBusy,
        VolumeDamaged,
        NotBootable,
        ImageMissing,
        StreamReset,
        NodeUnreachable,
        NotAllowed,
        HypervisorError,
    )
}
