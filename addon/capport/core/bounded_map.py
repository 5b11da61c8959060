"""A dict of bounded size that strangers may fill: the entry set longest ago is dropped first."""

from collections import OrderedDict


class BoundedMap[Key, Value](OrderedDict[Key, Value]):
    """At most `most` entries. Setting a key again makes it the newest."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, key: Key, value: Value) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self._most:
            self.popitem(last=False)
