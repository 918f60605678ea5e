"""Look at one folder in a process of its own: a filesystem that is dead holds whoever asks it.

`python probe.py FOLDER` prints one JSON object. It is run as a file and imports little, because the
doctor starts one for every folder.
"""

import contextlib
import json
import os
import sys
import time


def probe(folder: str) -> dict[str, object]:
    """Look at a folder, or at the nearest one above it that exists.

    Returns: exists; real, the folder looked at, without links; free_bytes and free_inodes for this
        user, free_inodes None where the filesystem does not count them; error, of writing, renaming
        and removing a file, empty where it worked; clock_s, how far the file's time, which a file
        server gives, is ahead of this host's.
    """
    nearest = os.path.abspath(folder)
    while not os.path.isdir(nearest) and not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    space = os.statvfs(nearest)
    found: dict[str, object] = {
        "exists": os.path.isdir(folder),
        "real": os.path.realpath(nearest),
        "free_bytes": space.f_bavail * space.f_frsize,
        "free_inodes": space.f_favail if space.f_files else None,
        "error": "",
        "clock_s": None,
    }
    # A name that nobody can foresee: a link of another user would be followed in a shared folder.
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
