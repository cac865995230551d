"""Data files on disk: the cache folder, downloads into it, archives for machines without a network.

    cache_dir()/d4rl/hopper_medium-v2.hdf5              a download
    cache_dir()/d4rl/hopper_medium-v2.hdf5.origin.json  its url, size and sha256 when first seen
    cache_dir()/d4rl/hopper_medium-v2.hdf5.part         an interrupted download: it resumes

A file has its final name only when it is whole and checked. What other packages have downloaded is
found in their own caches and read in place.
"""

from offbench.tasks.files.archive import MANIFEST, pack, unpack
from offbench.tasks.files.digest import digest
from offbench.tasks.files.download import Progress, fetch
from offbench.tasks.files.folders import Kind, cache_dir, find, search_folders

__all__ = [
    "MANIFEST",
    "Kind",
    "Progress",
    "cache_dir",
    "digest",
    "fetch",
    "find",
    "pack",
    "search_folders",
    "unpack",
]
