"""Takes away what a process that decodes untrusted bytes does not need: memory, files, the network, other programs.

Resource limits hold on every Unix. The system-call filter needs Linux and libseccomp; without them the process is
still limited, but could open files and sockets.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import resource
import sys
from pathlib import Path

MIB = 1024**2
MAX_FILES = 64  # open at once: the pipe, a payload, a result, and what libraries hold
NO_MEMORY = 86  # exit status of a child that has no memory left to answer
SLACK_MIB = 32  # pages of libraries that were mapped before the limit and are touched after it

KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "VIRTUAL_ENV")  # nothing secret
FIXED_VARIABLES = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}

# All that decoding needs. Any other system call fails with EPERM: no open, socket, connect, execve, kill or ptrace.
NEEDED = """
    brk mmap munmap mremap mprotect madvise membarrier
    read pread64 readv write pwrite64 writev lseek fstat fcntl close ftruncate memfd_create
    recvmsg recvfrom sendmsg sendto poll ppoll
    futex set_robust_list rseq sched_yield sched_getaffinity sched_setaffinity getcpu clone set_tid_address
    rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack restart_syscall
    clock_gettime clock_getres clock_nanosleep nanosleep gettimeofday time times getrusage sysinfo
    getpid gettid getrandom exit exit_group
"""
NEW_CLONE = "clone3"  # its flags cannot be filtered; ENOSYS makes the C library use clone
THREAD_FLAG = 0x10000  # CLONE_THREAD


def clean_environment() -> dict[str, str]:
    """The variables that a child needs to import this package, without any secret of its parent."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | FIXED_VARIABLES | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}


def confine(memory_mib: int) -> bool:
    """Limit this process for good, to about `memory_mib` MiB of resident memory. True if system calls are filtered.

    Import everything before: no file can be opened afterwards.
    """
    limit_memory(memory_mib)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory_mib * MIB,) * 2)
    resource.setrlimit(resource.RLIMIT_NOFILE, (MAX_FILES, MAX_FILES))
    return _filter_calls()


def limit_memory(memory_mib: int) -> None:
    """Let the address space grow only as far as resident memory may. Only Linux tells and keeps this limit."""
    if sys.platform != "linux":
        return
    size, resident = (int(pages) * resource.getpagesize() for pages in _statm()[:2])
    room = max(0, (memory_mib - SLACK_MIB) * MIB - resident)
    resource.setrlimit(resource.RLIMIT_AS, (size + room,) * 2)


def can_filter() -> bool:
    """Whether this machine has a library to filter system calls."""
    if sys.platform != "linux" or importlib.util.find_spec("pyseccomp") is None:
        return False
    try:
        importlib.import_module("pyseccomp").get_api()
    except (OSError, RuntimeError):  # libseccomp is missing
        return False
    return True


def _filter_calls() -> bool:
    if not can_filter():
        return False
    seccomp = importlib.import_module("pyseccomp")
    filtered = seccomp.SyscallFilter(defaction=seccomp.ERRNO(1))
    for name in NEEDED.split():
        thread_only = [seccomp.Arg(0, seccomp.MASKED_EQ, THREAD_FLAG, THREAD_FLAG)] if name == "clone" else []
        try:
            filtered.add_rule(seccomp.ALLOW, name, *thread_only)
        except (OSError, ValueError):  # another processor has no call of this name
            continue
    filtered.add_rule(seccomp.ERRNO(38), NEW_CLONE)
    filtered.load()
    return True


def _statm() -> list[str]:
    return Path("/proc/self/statm").read_text().split()
