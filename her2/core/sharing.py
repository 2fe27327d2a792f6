"""Every stage: the group and the modes of files and folders that several people use.

A folder that an administrator gave to a group (setgid, or writable by the group and not by all) is
shared: what is made in it belongs to its group and has its group bits, whatever the umask. In any
other folder the umask alone decides. The bits of others always come from the umask.
"""

import grp
import os
import pwd
import secrets
import stat
from pathlib import Path

from her2.core.errors import UserError


def make_folder(folder: Path) -> None:
    """Make a folder and its parents; those below a shared folder are shared too.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    if folder.parent != folder:
        make_folder(folder.parent)
    parent = folder.parent.stat()
    if not _is_shared(parent):
        folder.mkdir(exist_ok=True)
        return
    # Under its own name it would, for a moment, be closed to another user who starts beside us.
    temporary = folder.with_name(f".{secrets.token_hex(6)}.tmp.{folder.name}")
    try:
        temporary.mkdir()
        try:
            share_folder(temporary)
            temporary.rename(folder)
        except OSError:
            temporary.rmdir()
            raise
    except OSError as error:
        if not folder.is_dir():
            raise OSError(error.errno, error.strerror, str(folder)) from None


def share_folder(folder: Path) -> None:
    """Give a new folder the group and the group bits of a shared parent."""
    parent, made = folder.parent.stat(), folder.stat()
    if _is_shared(parent) and _joins(folder, parent.st_gid):
        _set_mode(folder, made, made.st_mode | parent.st_mode & (stat.S_IRWXG | stat.S_ISGID))


def file_mode(path: Path) -> int:
    """Return the mode that a new file of this name gets from the umask and the folder.

    Libraries make files by their own rules (safetensors: for the owner alone), so a file is made
    here, asked for its mode, and removed. An access list of the folder counts in this way too.
    """
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
        path.unlink()


def share_file(path: Path, mode: int, *, read_only: bool) -> None:
    """Set the mode of a new file, and the group and group bits of a shared parent.

    Args:
        path: the file, or one more name of an existing one.
        mode: the mode by `file_mode`.
        read_only: nobody may write in it.

    Raises:
        OSError: it is another user's file, and may be written.
    """
    parent = path.parent.stat()
    if _is_shared(parent) and _joins(path, parent.st_gid):
        mode |= parent.st_mode & (stat.S_IRGRP | stat.S_IWGRP)
    made = path.stat()
    try:
        _set_mode(path, made, mode & ~_WRITE if read_only else mode)
    except PermissionError:
        if not read_only or made.st_mode & _WRITE:
            raise


def forbid_writing(path: Path) -> bool:
    """Make a file read-only for all; return whether it is now."""
    made = path.stat()
    try:
        _set_mode(path, made, made.st_mode & ~_WRITE)
    except PermissionError:
        return False
    return True


def check_readable(path: Path) -> None:
    """Check that this user may read a file, or a folder and its files, before it is read.

    A reader that is refused takes the file for an absent or a damaged one (safetensors says "no
    such file"), and then it is made again or moved aside.

    Raises:
        UserError: it may not be read; the message says who may.
    """
    try:
        path.stat()
    except PermissionError:
        raise denied(path) from None
    except OSError:  # absent, which its reader says
        return
    if closed := unreadable(path):
        raise denied(closed)


def unreadable(product: Path) -> Path | None:
    """Return the first of a file or folder and its files that this user may not read."""
    if not product.is_dir():
        return None if os.access(product, os.R_OK) else product
    if not os.access(product, os.R_OK | os.X_OK):
        return product
    return next((item for item in map(unreadable, sorted(product.iterdir())) if item), None)


def denied(path: Path, what: str = "read") -> UserError:
    """Return the error about a file or folder that permissions keep this user from using.

    `what` is the past participle of what was tried.
    """
    closed = what != "read" and not os.access(path.parent, os.W_OK)
    return UserError(
        f"{path}: permission denied, it may not be {what}. "
        f"{access_words(path.parent if closed else path)} Ask the owner for "
        f"`chgrp -R GROUP` and `chmod -R g+rwX` with a group of yours (docs/sharing.md), or set "
        "another folder in the config."
    )


def access_words(path: Path) -> str:
    """Return who may use a path, or the outermost folder that is closed, and who asks."""
    path = there = Path(os.path.realpath(path))  # a link itself is open to all
    for part in (*reversed(path.parents), path):
        if not os.path.lexists(part):
            break
        there = part
        if part.is_dir() and not os.access(part, os.X_OK):
            break
    found = there.lstat()
    sticky = there.parent.lstat().st_mode & stat.S_ISVTX
    user, group = _user_name(found.st_uid), _group_name(found.st_gid)
    groups = sorted({_group_name(gid) for gid in (os.getegid(), *os.getgroups())})
    return (
        f"{there} is {stat.filemode(found.st_mode)}, of user {user} and group {group}; this is "
        f"user {_user_name(os.geteuid())} in group{'s' * (len(groups) > 1)} {', '.join(groups)}."
        + " Its folder lets only owners replace and delete (chmod -t undoes that)."
        * bool(sticky)
    )


def is_mine(path: Path) -> bool:
    """Return whether a file or folder belongs to this user."""
    return path.stat().st_uid == os.geteuid()


_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH


def _is_shared(folder: os.stat_result) -> bool:
    """Return whether a folder was given to its group; one for all, like /tmp, was not."""
    mode = folder.st_mode
    return bool(mode & stat.S_ISGID or (mode & stat.S_IWGRP and not mode & stat.S_IWOTH))


def _joins(path: Path, group: int) -> bool:
    """Give a path to a group; return whether it belongs to it now."""
    if path.stat().st_gid == group:
        return True
    try:
        os.chown(path, -1, group)
    except PermissionError:  # not a member, or not the owner: the bits would open it to another
        return False
    return True


def _set_mode(path: Path, now: os.stat_result, mode: int) -> None:
    mode = stat.S_IMODE(mode)
    # Setting it needlessly would take setgid from a folder whose group the user is not in.
    if stat.S_IMODE(now.st_mode) != mode:
        path.chmod(mode)


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
