"""Probe of one folder in its own process, because a dead filesystem blocks whoever accesses it.

`python folder_probe.py FOLDER` prints one JSON object. It is run as a file and imports little,
because the doctor starts one per folder.
"""

import contextlib
import json
import os
import sys
import time


def probe(folder: str) -> dict[str, object]:
    """Probe a folder, or its nearest existing parent.

    Returns: real: the probed folder with links resolved; free_bytes and free_inodes for this user,
        None if the filesystem does not count inodes; error: why a file cannot be written, renamed
        and removed, empty if it can; clock_s: seconds by which the file server's clock is ahead of
        this host's.
    """
    nearest = os.path.abspath(folder)
    while not os.path.isdir(nearest) and not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    space = os.statvfs(nearest)
    found: dict[str, object] = {
        "real": os.path.realpath(nearest),
        "free_bytes": space.f_bavail * space.f_frsize,
        "free_inodes": space.f_favail if space.f_files else None,
        "error": "",
        "clock_s": None,
    }
    # An unpredictable name: in a shared folder another user could plant a link under a known one.
    name = os.path.join(nearest, f".fitb-doctor-{os.urandom(8).hex()}")
    try:
        with open(name, "xb") as file:
            begin_s = time.time()
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())
            end_s = time.time()
        os.replace(name, f"{name}.renamed")
        name += ".renamed"
        written_s = os.stat(name).st_mtime
        found["clock_s"] = min((written_s - begin_s, written_s - end_s), key=abs)
    except OSError as error:
        found["error"] = error.strerror or type(error).__name__
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
    return found


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1])))
