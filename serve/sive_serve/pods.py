"""From settings to what keeps pods at a list of adapters."""

from collections.abc import Callable

from pydantic import SecretStr
from sive.config import Settings
from sive.errors import ConfigError

from sive_serve.pod_admin import PodAdmin
from sive_serve.pod_reconciler import PodReconciler


def reconciler(settings: Settings, *, observe: Callable[[str, str, str], None]) -> PodReconciler | None:
    """Return what keeps the configured pods at the configured list; None when there is neither.

    Raises:
        ConfigError: one is there without the other.
        AdapterError: the list cannot be read.
    """
    path = settings.gateway.adapters
    admins = [
        PodAdmin(backend.name, str(backend.url), key)
        for backend in settings.backend
        if (key := _key(backend.admin_key)) and backend.url is not None
    ]
    if path is None and not admins:
        return None
    if path is None:
        raise ConfigError(
            f"backend {admins[0].name!r} has an admin key and there is no list to keep it at: name one as "
            "adapters under [gateway]"
        )
    if not admins:
        raise ConfigError(
            "[gateway] names a list of adapters and there is no pod to keep at it: give a [[backend]] with a "
            "url its admin_key_env"
        )
    return PodReconciler(path, admins, removes=settings.gateway.adapters_remove, observe=observe)


def _key(key: SecretStr | None) -> SecretStr | None:
    return key if key is not None and key.get_secret_value() else None
