"""The fields of KubeRay's kinds, so that a slip in a manifest is found without a cluster.

KubeRay's own schema is in its Helm chart, which no package index has. These are the fields of
`ray.io/v1` as its API reference for release 1.7.0 lists them, names and kinds of values; whatever
is Kubernetes' own (pods, containers, resources) is left to the schemas of `kubernetes-validate`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kubernetes = dict[str, Any]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AuthOptions(Strict):
    mode: Literal["disabled", "token"] = "token"
    secretName: str | None = None
    enableK8sTokenAuth: bool | None = None


class AutoscalerOptions(Strict):
    resources: Kubernetes = {}
    image: str | None = None
    imagePullPolicy: str | None = None
    securityContext: Kubernetes = {}
    idleTimeoutSeconds: int | None = None
    upscalingMode: Literal["Default", "Aggressive", "Conservative"] | None = None
    version: Literal["v1", "v2"] | None = None
    env: list[Kubernetes] = []
    envFrom: list[Kubernetes] = []
    volumeMounts: list[Kubernetes] = []
    command: list[str] = []
    args: list[str] = []


class HeadGroupSpec(Strict):
    template: Kubernetes
    headService: Kubernetes | None = None
    enableIngress: bool | None = None
    ingressOptions: Kubernetes | None = None
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}
    rayStartParams: dict[str, str] = {}
    serviceType: Literal["ClusterIP", "NodePort", "LoadBalancer"] | None = None


class ScaleStrategy(Strict):
    workersToDelete: list[str] = []


class WorkerGroupSpec(Strict):
    suspend: bool | None = None
    groupName: str
    replicas: int = Field(0, ge=0)
    minReplicas: int = Field(0, ge=0)
    maxReplicas: int = Field(2147483647, ge=0)
    idleTimeoutSeconds: int | None = None
    priority: int = 0
    resources: dict[str, str] = {}
    labels: dict[str, str] = {}
    rayStartParams: dict[str, str] = {}
    template: Kubernetes
    scaleStrategy: ScaleStrategy | None = None
    numOfHosts: int = 1


class RayClusterSpec(Strict):
    upgradeStrategy: Kubernetes | None = None
    authOptions: AuthOptions | None = None
    suspend: bool | None = None
    managedBy: str | None = None
    autoscalerOptions: AutoscalerOptions | None = None
    headServiceAnnotations: dict[str, str] = {}
    enableInTreeAutoscaling: bool | None = None
    gcsFaultToleranceOptions: Kubernetes | None = None
    historyServerOptions: Kubernetes | None = None
    networkPolicy: Kubernetes | None = None
    tlsOptions: Kubernetes | None = None
    headGroupSpec: HeadGroupSpec
    rayVersion: str | None = None
    workerGroupSpecs: list[WorkerGroupSpec] = []


class RayJobSpec(Strict):
    activeDeadlineSeconds: int | None = Field(None, gt=0)
    backoffLimit: int = 0
    rayClusterSpec: RayClusterSpec | None = None
    submitterPodTemplate: Kubernetes | None = None
    metadata: dict[str, str] = {}
    clusterSelector: dict[str, str] = {}
    submitterConfig: Kubernetes | None = None
    managedBy: str | None = None
    deletionStrategy: Kubernetes | None = None
    entrypoint: str | None = None
    runtimeEnvYAML: str | None = None
    jobId: str | None = None
    submissionMode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"] | None = (
        None
    )
    entrypointResources: str | None = None
    entrypointNumCpus: float | None = None
    entrypointNumGpus: float | None = None
    ttlSecondsAfterFinished: int = 0
    preRunningDeadlineSeconds: int | None = Field(None, gt=0)
    shutdownAfterJobFinishes: bool | None = None
    suspend: bool | None = None


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=50)
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class RayCluster(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Metadata
    spec: RayClusterSpec


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: RayJobSpec


KINDS: dict[str, type[Strict]] = {"RayCluster": RayCluster, "RayJob": RayJob}
