"""What the kernel does to shut a process in: namespaces, Landlock, seccomp. Loaded by path inside of :mod:`.sandbox`;
as a script it prints ``places``.

Each layer is tried by itself and says whether it holds; any of them may be missing. Numbers are those of Linux's
headers for x86-64 and 64-bit Arm.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

_NEW_NS, _NEW_IPC, _NEW_USER, _NEW_PID, _NEW_NET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_NEW_ANY = 0x7E020080  # every kind of namespace
_THREAD = 0x00010000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_AT_RECURSIVE, _RDONLY = 0x8000, 1
_SET_SECCOMP, _SET_NO_NEW_PRIVS, _FILTER = 22, 38, 2
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _MOUNT_SETATTR = 444, 445, 446, 442  # the same on both machines
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 14
_ETC: tuple[str, ...] = (
    "ld.so.cache",
    "ld.so.preload",
    "nsswitch.conf",
    "passwd",
    "group",
    "hosts",
    "host.conf",
    "services",
)
_ETC += ("protocols", "localtime", "timezone", "locale.alias", "mime.types", "ssl/openssl.cnf")
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


def places() -> tuple[str, ...]:
    """What a program may read: the system's libraries, of /etc what libc wants, and this Python with its packages."""
    system = ("/usr", "/lib", "/lib64", "/bin", "/opt/homebrew", *(f"/etc/{name}" for name in _ETC))
    return tuple(dict.fromkeys(filter(os.path.exists, (*system, sys.prefix, sys.base_prefix, *sys.path))))


# Namespaces -----------------------------------------------------------------------------------------------------


def namespaces(libc: Any) -> bool:
    """Leave the machine's network, processes and mounts behind, where the kernel lets us."""
    if sys.platform != "linux":
        return False
    done: bool = libc.unshare(_NEW_USER | _NEW_NS | _NEW_NET | _NEW_PID | _NEW_IPC) == 0
    return done


def read_only(libc: Any, folder: str) -> bool:
    """In mounts of one's own: everything is read-only but one folder, so that no mode or time is changed either."""

    class Change(ctypes.Structure):
        _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "user"))

    def attributes(place: str, set_: int, clear: int) -> bool:
        change = Change(set_, clear, 0, 0)
        path, size = place.encode(), ctypes.c_size_t(ctypes.sizeof(change))
        failed = libc.syscall(_MOUNT_SETATTR, -100, path, _AT_RECURSIVE, ctypes.byref(change), size)
        return not failed

    mine = folder.encode()
    return (
        libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None) == 0
        and libc.mount(mine, mine, None, _MS_BIND, None) == 0
        and attributes("/", _RDONLY, 0)
        and attributes(folder, 0, _RDONLY)
    )


# Landlock -------------------------------------------------------------------------------------------------------


def landlock(libc: Any, folder: str) -> int:
    """From here on write in one folder only, and read there and in ``places``; the version, 0 if there is none."""

    class Beneath(ctypes.Structure):
        _pack_ = 1
        _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))

    version: int = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1) if sys.platform == "linux" else -1
    if version < 1:
        return 0
    # Later versions of Landlock know more rights: to move between folders (2), to cut (3), to control devices (5).
    every = (1 << (13 + (version >= 2) + (version >= 3) + (version >= 5))) - 1
    handled = ctypes.c_uint64(every)
    rules = libc.syscall(_CREATE_RULESET, ctypes.byref(handled), ctypes.c_size_t(8), 0)
    device = (_READ_FILE | _WRITE_FILE | _TRUNCATE) & every
    allowed = {place: _EXECUTE | _READ_FILE | (os.path.isdir(place) and _READ_DIR) for place in places()}
    allowed |= {place: device for place in DEVICES if os.path.exists(place)} | {folder: every}
    for place, rights in allowed.items():
        parent = os.open(place, os.O_PATH)
        rule = Beneath(rights, parent)
        failed = libc.syscall(_ADD_RULE, rules, 1, ctypes.byref(rule), 0)
        os.close(parent)
        if failed:
            return 0
    libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    done = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return version if done else 0


# Seccomp --------------------------------------------------------------------------------------------------------

_ARCH = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_NEWEST = 462  # calls with higher numbers are newer than this list, and answered as unknown

# Name -> numbers on x86-64 and 64-bit Arm, None where there is no such call.
_Table = dict[str, tuple[int | None, int | None]]
_NEVER: _Table = {
    **{"ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272)},
    **{"process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_getfd": (438, 438)},
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268)},
    **{"open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431)},
    **{"fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442), "unshare": (272, 97)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "memfd_secret": (447, 447)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219), "fanotify_init": (300, 262)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "acct": (163, 89)},
    **{"finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142), "syslog": (103, 116)},
    **{"name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "swapon": (167, 224), "swapoff": (168, 225)},
    **{"sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170), "adjtimex": (159, 171)},
    **{"clock_settime": (227, 112), "clock_adjtime": (305, 266), "quotactl": (179, 60), "quotactl_fd": (443, 443)},
    **{"iopl": (172, None), "ioperm": (173, None), "vhangup": (153, 58), "personality": (135, 92)},
    **{"migrate_pages": (256, 238), "move_pages": (279, 239)},
}
_OUTSIDE: _Table = {  # refused where processes and network are shared with the machine
    **{"tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "ioprio_set": (251, 30)},
    **{"pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "setsid": (112, 157), "setpgid": (109, 154)},
    **{"fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281)},
    **{"socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202)},
    **{"accept4": (288, 242), "sendmsg": (46, 211), "sendmmsg": (307, 269)},
    **{"shmget": (29, 194), "shmat": (30, 196), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180)},
}
_OF_FILES: _Table = {  # refused where mounts are shared with the machine: Landlock does not cover these
    **{"chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None)},
    **{"fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None)},
    **{"futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6)},
    **{"fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16)},
}
_BY_PROCESS: _Table = {  # the first argument is a process: oneself only
    **{"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261), "sched_setparam": (142, 118)},
    **{"sched_setscheduler": (144, 119), "sched_setaffinity": (203, 122), "sched_setattr": (314, 274)},
}
_CLONE, _CLONE3, _PRCTL, _SETPRIORITY = (56, 220), (435, 435), (157, 167), (141, 140)
_SOCKETPAIR, _SENDTO, _IOCTL = (53, 199), (44, 206), (16, 29)
_TRUNCATES: _Table = {"truncate": (76, 45), "openat2": (437, 437)}  # before version 3 of Landlock
_OPENS = {"open": ((2, None), 1), "openat": ((257, 56), 2)}  # with the place of the flags
_SET_FLAGS = (0x40086602, 0x401C5820, 0x40046602)  # attributes of files by ioctl


class _Program:
    """A filter in the kernel's small language: system calls in, verdicts out.

    Each rule ends in a verdict for its call and is jumped over by all others, so that the number of the call stays
    loaded between rules.
    """

    LOAD, JUMP_EQUAL, JUMP_ABOVE, JUMP_BITS, AND, RETURN = 0x20, 0x15, 0x25, 0x45, 0x54, 0x06
    ALLOW, REFUSE, UNKNOWN, KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000  # EPERM, ENOSYS
    NUMBER, ARCH = 0, 4

    def __init__(self, which: int, arch: int) -> None:
        self.which = which
        self.lines = [(self.LOAD, 0, 0, self.ARCH), (self.JUMP_EQUAL, 1, 0, arch), (self.RETURN, 0, 0, self.KILL)]
        self.lines += [(self.LOAD, 0, 0, self.NUMBER), (self.JUMP_ABOVE, 0, 1, _NEWEST)]
        self.lines += [(self.RETURN, 0, 0, self.UNKNOWN)]

    def rule(self, numbers: tuple[int | None, int | None], *body: tuple[int, int, int, int]) -> None:
        """What becomes of one call."""
        number = numbers[self.which]
        if number is not None:
            self.lines += [(self.JUMP_EQUAL, 0, len(body), number), *body]

    def refuse(self, table: _Table) -> None:
        for numbers in table.values():
            self.rule(numbers, (self.RETURN, 0, 0, self.REFUSE))

    def only(self, numbers: tuple[int | None, int | None], *wanted: tuple[float, tuple[int, ...]]) -> None:
        """Allowed if each of some arguments (its place, 32 bits) is one of its values."""
        body: list[tuple[int, int, int, int]] = []
        for place, values in wanted:
            body.append(self.argument(place))
            body += [(self.JUMP_EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
            body.append((self.RETURN, 0, 0, self.REFUSE))
        self.rule(numbers, *body, (self.RETURN, 0, 0, self.ALLOW))

    def unless(self, numbers: tuple[int | None, int | None], place: int, *values: int) -> None:
        """Refused if an argument is one of these."""
        equal = [(self.JUMP_EQUAL, len(values) - k, 0, value) for k, value in enumerate(values)]
        ends = [(self.RETURN, 0, 0, self.ALLOW), (self.RETURN, 0, 0, self.REFUSE)]
        self.rule(numbers, self.argument(place), *equal, *ends)

    def bits(self, numbers: tuple[int | None, int | None], place: int, mask: int, *, with_them: int) -> None:
        """A verdict for an argument with any of these bits; the other one without."""
        without = self.ALLOW if with_them == self.REFUSE else self.REFUSE
        ends = [(self.RETURN, 0, 0, without), (self.RETURN, 0, 0, with_them)]
        self.rule(numbers, self.argument(place), (self.JUMP_BITS, 1, 0, mask), *ends)

    def argument(self, place: float) -> tuple[int, int, int, int]:
        """32 bits of an argument: the lower ones, and with half a place more the upper ones."""
        return (self.LOAD, 0, 0, 16 + int(8 * place))

    def install(self, libc: Any) -> bool:
        """From here on, for this process and all that come of it."""

        class Line(ctypes.Structure):
            _fields_ = (
                *(("code", ctypes.c_uint16), ("if_true", ctypes.c_uint8), ("if_false", ctypes.c_uint8)),
                ("value", ctypes.c_uint32),
            )

        class Whole(ctypes.Structure):
            _fields_ = (("length", ctypes.c_uint16), ("lines", ctypes.POINTER(Line)))

        lines = [*self.lines, (self.RETURN, 0, 0, self.ALLOW)]
        whole = Whole(len(lines), (Line * len(lines))(*(Line(*line) for line in lines)))
        libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        done: bool = libc.prctl(_SET_SECCOMP, _FILTER, ctypes.byref(whole), 0, 0) == 0
        return done


def seccomp(libc: Any, apart: bool, mounted: bool, version: int) -> bool:
    """Refuse system calls that reach outside: other processes, the network, the machine's settings.

    Args:
        apart: processes and network are the program's own (``namespaces``); else it gets no process and no socket.
        mounted: what is outside of its folder is read-only (``read_only``); else modes and times of files are kept.
        version: of Landlock; before 3 it does not cover that files are cut.
    """
    if sys.platform != "linux" or os.uname().machine not in _ARCH:
        return False
    program, me = _Program(*_ARCH[os.uname().machine]), os.getpid()
    program.rule(_CLONE3, (program.RETURN, 0, 0, program.UNKNOWN))  # its flags cannot be seen; libc then takes clone
    program.unless(_PRCTL, 0, 1)  # the signal at the parent's death
    program.refuse(_NEVER)
    if apart:
        program.bits(_CLONE, 0, _NEW_ANY, with_them=program.REFUSE)
    else:
        program.bits(_CLONE, 0, _THREAD, with_them=program.ALLOW)
        program.refuse(_OUTSIDE)
        for numbers in _BY_PROCESS.values():
            program.only(numbers, (0, (0, me)) if numbers != _BY_PROCESS["kill"] else (0, (me,)))
        program.only(_SETPRIORITY, (0, (0,)), (1, (0, me)))
        program.only(_SOCKETPAIR, (0, (1,)), (1, tuple(1 | flags for flags in (0, 0x800, 0x80000, 0x80800))))
        program.only(_SENDTO, (4, (0,)), (4.5, (0,)))  # no address, of 64 bits
    if not mounted:
        program.refuse(_OF_FILES)
        program.unless(_IOCTL, 1, *_SET_FLAGS)
        if version < 3:
            program.refuse(_TRUNCATES)
            for numbers, place in _OPENS.values():  # cut without being opened for writing
                flags = [program.argument(place), (program.AND, 0, 0, 0o1003), (program.JUMP_EQUAL, 0, 1, 0o1000)]
                ends = [(program.RETURN, 0, 0, program.REFUSE), (program.RETURN, 0, 0, program.ALLOW)]
                program.rule(numbers, *flags, *ends)
    return program.install(libc)


if __name__ == "__main__":
    print("\n".join(places()))
