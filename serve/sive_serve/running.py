"""The requests that are being answered, so that they can be ended from outside."""

import hmac
from collections import defaultdict

from sive.drive import Driver

CANCELLED_STATUS = 499
"""nginx's code for a client that closed its request; there is no standard one."""


class Running:
    """Drivers by the id of their request, with the ``Authorization`` header each came with."""

    def __init__(self) -> None:
        self.count = 0
        self._drivers: defaultdict[str, dict[Driver, str]] = defaultdict(dict)

    def add(self, request_id: str, driver: Driver, authorization: str) -> None:
        """A request begins."""
        self.count += 1
        self._drivers[request_id][driver] = authorization

    def remove(self, request_id: str, driver: Driver) -> None:
        """It is over."""
        self.count -= 1
        drivers = self._drivers[request_id]
        del drivers[driver]
        if not drivers:
            del self._drivers[request_id]

    def cancel(self, request_id: str, authorization: str) -> int:
        """End what runs under an id, if it came with the same key; how many requests that were."""
        found = [
            driver
            for driver, came_with in self._drivers.get(request_id, {}).items()
            if hmac.compare_digest(came_with.encode(), authorization.encode())
        ]
        for driver in found:
            message = "the request was cancelled"
            driver.cancel(status=CANCELLED_STATUS, message=message, code="request_cancelled")
        return len(found)

    def end_all(self, message: str) -> None:
        """End everything; each caller is told why."""
        for drivers in list(self._drivers.values()):
            for driver in drivers:
                driver.cancel(status=503, message=message, code="shutting_down")
