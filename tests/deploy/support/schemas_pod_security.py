"""The level `restricted` of the Pod Security Standards, which includes `baseline`, for Linux pods.

Source of every rule: Kubernetes documentation, "Pod Security Standards" (concepts/security/pod-security-standards), the
control that each rule names. Pods are checked as they are written: nothing is filled in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.deploy.support.render import Object, pod_specs

__all__ = ["CONTROLS", "restricted_findings"]

_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})
"""Restricted allows no other to be added; baseline's longer list is moot."""
_VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
_SECCOMP = frozenset({"RuntimeDefault", "Localhost"})
_APPARMOR = frozenset({"RuntimeDefault", "Localhost"})
_SELINUX_TYPES = frozenset({"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
_SYSCTLS = frozenset(
    {
        "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
    }
)  # fmt: skip
Rule = Callable[[Object], Iterator[str]]


def restricted_findings(objects: Iterable[Object]) -> list[str]:
    """Where a pod would not be admitted into a namespace that enforces `restricted`."""
    return [
        f"{where}: {control}: {found}"
        for where, spec in pod_specs(list(objects))
        for control, rule in CONTROLS.items()
        for found in rule(spec)
    ]


def _containers(spec: Object) -> Iterator[Object]:
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        yield from spec.get(kind, ())


def _contexts(spec: Object) -> Iterator[tuple[str, Object]]:
    """Security contexts: the pod's, and each container's."""
    yield "the pod", spec.get("securityContext") or {}
    for container in _containers(spec):
        yield container["name"], container.get("securityContext") or {}


def _host_process(spec: Object) -> Iterator[str]:
    for name, context in _contexts(spec):
        if (context.get("windowsOptions") or {}).get("hostProcess"):
            yield f"{name} is a host process"


def _host_namespaces(spec: Object) -> Iterator[str]:
    yield from (f"{name} is true" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))


def _privileged(spec: Object) -> Iterator[str]:
    yield from (f"{name} is privileged" for name, context in _contexts(spec) if context.get("privileged"))


def _host_ports(spec: Object) -> Iterator[str]:
    for container in _containers(spec):
        yield from (f"{container['name']} takes port {port['hostPort']} of the node"
                    for port in container.get("ports", ()) if port.get("hostPort"))  # fmt: skip


def _probe_hosts(spec: Object) -> Iterator[str]:
    """Since 1.34: a probe or hook that names a host can be sent anywhere."""
    for container in _containers(spec):
        handlers = {name: container.get(name) for name in ("livenessProbe", "readinessProbe", "startupProbe")}
        handlers.update(container.get("lifecycle") or {})
        for name, handler in handlers.items():
            if any((handler or {}).get(kind, {}).get("host") for kind in ("httpGet", "tcpSocket")):
                yield f"{container['name']}: {name} names a host"


def _app_armor(spec: Object) -> Iterator[str]:
    for name, context in _contexts(spec):
        profile = (context.get("appArmorProfile") or {}).get("type")
        if profile is not None and profile not in _APPARMOR:
            yield f"{name} has profile {profile}"


def _selinux(spec: Object) -> Iterator[str]:
    for name, context in _contexts(spec):
        options = context.get("seLinuxOptions") or {}
        if options.get("type", "") not in _SELINUX_TYPES or options.get("user") or options.get("role"):
            yield f"{name} has {options}"


def _proc_mount(spec: Object) -> Iterator[str]:
    for name, context in _contexts(spec):
        if context.get("procMount", "Default") != "Default":
            yield f"{name} has procMount {context['procMount']}"


def _sysctls(spec: Object) -> Iterator[str]:
    for sysctl in (spec.get("securityContext") or {}).get("sysctls", ()):
        if sysctl["name"] not in _SYSCTLS:
            yield f"{sysctl['name']} is not a safe one"


def _volume_types(spec: Object) -> Iterator[str]:
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        yield from (f"volume {volume['name']} is of type {kind}" for kind in sorted(kinds - _VOLUMES))


def _escalation(spec: Object) -> Iterator[str]:
    for container in _containers(spec):
        if _of(container, "allowPrivilegeEscalation") is not False:
            yield f"{container['name']} must say allowPrivilegeEscalation: false"


def _non_root(spec: Object) -> Iterator[str]:
    """Container by container, or for all by the pod; a container that says false is refused in any case."""
    of_pod = (spec.get("securityContext") or {}).get("runAsNonRoot")
    for container in _containers(spec):
        said = _of(container, "runAsNonRoot")
        if (of_pod if said is None else said) is not True:
            yield f"{container['name']} must say runAsNonRoot: true, or its pod"


def _user(spec: Object) -> Iterator[str]:
    yield from (f"{name} runs as user 0" for name, context in _contexts(spec) if context.get("runAsUser") == 0)


def _seccomp(spec: Object) -> Iterator[str]:
    of_pod = ((spec.get("securityContext") or {}).get("seccompProfile") or {}).get("type")
    for container in _containers(spec):
        profile = (_of(container, "seccompProfile") or {}).get("type", of_pod)
        if profile not in _SECCOMP:
            yield f"{container['name']} has profile {profile}"


def _capabilities(spec: Object) -> Iterator[str]:
    for container in _containers(spec):
        capabilities = _of(container, "capabilities") or {}
        if "ALL" not in capabilities.get("drop", ()):
            yield f"{container['name']} must drop ALL"
        added = set(capabilities.get("add", ())) - _CAPABILITIES
        yield from (f"{container['name']} adds {name}" for name in sorted(added))


def _of(container: Object, field: str) -> Any:
    return (container.get("securityContext") or {}).get(field)


CONTROLS: dict[str, Rule] = {
    "HostProcess": _host_process,  # baseline
    "Host Namespaces": _host_namespaces,  # baseline
    "Privileged Containers": _privileged,  # baseline
    "Host Ports": _host_ports,  # baseline
    "Host Probes / Lifecycle Hooks": _probe_hosts,  # baseline, since 1.34
    "AppArmor": _app_armor,  # baseline
    "SELinux": _selinux,  # baseline
    "/proc Mount Type": _proc_mount,  # baseline
    "Sysctls": _sysctls,  # baseline
    "Volume Types": _volume_types,  # restricted; hostPath, which baseline forbids, is not among them
    "Privilege Escalation": _escalation,  # restricted
    "Running as Non-root": _non_root,  # restricted
    "Running as Non-root user": _user,  # restricted
    "Seccomp": _seccomp,  # restricted
    "Capabilities": _capabilities,  # restricted, and stricter than baseline's
}
"""By the standard's name of the control."""
