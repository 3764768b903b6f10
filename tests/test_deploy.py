"""deploy/: manifests against the official schemas and against the service, the image's files, and the packages that
serving needs."""
import ast
import copy
import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import ROOT, Service, plain_env, sample_release, wait_ready
from packaging.utils import canonicalize_name
from test_layout import MODULES, imported_modules, module_tree

from mlgov_nb import __version__
from mlgov_nb.log.subject import subject_secret
from mlgov_nb.serve.app import App
from mlgov_nb.serve.counters import Counters
from mlgov_nb.serve.tokens import read_tokens
from mlgov_nb.settings import MlgovError, ServiceSettings

K8S, KSERVE = ROOT/"deploy/kubernetes", ROOT/"deploy/kserve"
DOCKERFILE, ENTRYPOINT = (ROOT/"deploy/Dockerfile").read_text(), ROOT/"deploy/entrypoint.sh"
OLDEST, NEWEST = "1.30", "1.37"      # preStop.sleep works without a flag since the oldest
FRAGMENTS = {"kustomization.yaml", "prometheus-scrape.yaml", "prometheus-adapter.yaml"}     # not for the cluster itself
MANIFESTS = sorted(p.name for p in K8S.glob("*.yaml") if p.name not in FRAGMENTS)
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


class Strict(yaml.SafeLoader):
    "YAML in which a key is given once"
    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        if twice := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"twice in one mapping: {twice}")
        return super().construct_mapping(node, deep)


def read(file, folder=K8S): return yaml.load((folder/file).read_text(), Strict)


# What KServe 0.20 adds to a PodSpec in spec.predictor, as far as it is used here: its CRD, serving.kserve.io/v1beta1
PREDICTOR = dict(
    minReplicas={"type": "integer", "minimum": 0},
    maxReplicas={"type": "integer", "minimum": 1},
    scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
    scaleTarget={"type": "integer"},
    deploymentStrategy={"type": "object"},
)
DEPLOYMENT, CRON, ISVC = read("deployment.yaml"), read("cronjob.yaml"), read("inferenceservice.yaml", KSERVE)
PREDICTED = {key: value for key, value in ISVC["spec"]["predictor"].items() if key not in PREDICTOR}
PODS = {
    "deployment": DEPLOYMENT["spec"]["template"],
    "cronjob":    CRON["spec"]["jobTemplate"]["spec"]["template"],
    "kserve":     dict(metadata=dict(labels=ISVC["metadata"]["labels"]), spec=PREDICTED),
}
SERVING = [PODS["deployment"], PODS["kserve"]]


def labels(pod): return pod["metadata"]["labels"].items()


def only_container(spec):
    (container,) = spec["containers"]
    return container


def container_of(pod): return only_container(pod["spec"])


def env_of(pod): return {entry["name"]: entry["value"] for entry in container_of(pod).get("env", [])}


def argument(pod, name):
    "What follows a name in the arguments of a pod's container"
    arguments = container_of(pod)["args"]
    return arguments[arguments.index(name) + 1]


def mounts(pod):
    "Where volumes are mounted, and the kind of each"
    kinds = {v["name"]: next(key for key in v if key != "name") for v in pod["spec"]["volumes"]}
    return {m["mountPath"]: kinds[m["name"]] for m in container_of(pod)["volumeMounts"]}


def volume(pod, name): return next(v for v in pod["spec"]["volumes"] if v["name"] == name)


def mebibytes(text): return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]


def image_env():
    "What the Dockerfile sets in the final image"
    lines = DOCKERFILE[DOCKERFILE.rindex("\nENV"):DOCKERFILE.index("\nWORKDIR")]
    return dict(re.findall(r"(\w+)=(\S+)", lines))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("file", MANIFESTS)
def test_manifests_follow_the_official_schema(file, version):
    manifest = read(file)
    assert kubernetes_validate.validate(manifest, version, strict=True) == version
    assert manifest["metadata"].get("namespace", manifest["metadata"]["name"]) == "mlgov"


def test_an_unknown_key_is_refused():
    bad = copy.deepcopy(DEPLOYMENT)
    container_of(bad["spec"]["template"])["lifecycle"]["preStop"]["sleep"]["second"] = 1
    with pytest.raises(kubernetes_validate.ValidationError): kubernetes_validate.validate(bad, NEWEST, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_inference_service_is_a_pod_with_what_kserve_adds(version):
    pod = dict(apiVersion="v1", kind="Pod", metadata=dict(name="x"), spec=PREDICTED)
    kubernetes_validate.validate(pod, version, strict=True)
    added = {key: value for key, value in ISVC["spec"]["predictor"].items() if key in PREDICTOR}
    jsonschema.validate(added, dict(properties=PREDICTOR))
    as_deployment = copy.deepcopy(DEPLOYMENT)
    as_deployment["spec"]["strategy"] = added["deploymentStrategy"]
    kubernetes_validate.validate(as_deployment, version, strict=True)

    assert set(ISVC) == {"apiVersion", "kind", "metadata", "spec"} and set(ISVC["spec"]) == {"predictor"}
    assert ISVC["apiVersion"] == "serving.kserve.io/v1beta1"
    env = env_of(PODS["kserve"])
    assert container_of(PODS["kserve"])["name"] == "kserve-container" and env["PROTOCOL"] == "v2"
    assert env["MLGOV_NAME"] == ISVC["metadata"]["name"]


def without_what_differs(pod):
    "A pod's specification without what KServe and a Deployment say differently"
    spec = copy.deepcopy(pod["spec"])
    spec.pop("topologySpreadConstraints", None)
    container = only_container(spec)
    for key in ("name", "image"): container.pop(key)
    container["env"] = [entry for entry in container["env"] if entry["name"] not in ("PROTOCOL", "MLGOV_NAME")]
    for probe in PROBES: container[probe]["httpGet"].pop("path")
    return spec


def test_kserve_runs_the_same_pod():
    ours, theirs = map(without_what_differs, SERVING)
    assert ours == theirs


def test_kustomization_names_every_manifest_and_the_images():
    kustomization = read("kustomization.yaml")
    assert sorted([*kustomization["resources"], "secret.example.yaml"]) == MANIFESTS      # the example is never applied
    (image,) = kustomization["images"]
    assert {container_of(pod)["image"] for pod in PODS.values()} == {image["name"]}
    assert image["newTag"] == __version__
    assert read("kustomization.yaml", KSERVE)["images"] == kustomization["images"]


RENDERED_ALWAYS = {"Namespace", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget",
                   "NetworkPolicy", "CronJob"}
RENDERED = [
    (K8S, {"Deployment", "Service", "HorizontalPodAutoscaler"}),
    (KSERVE, {"InferenceService"}),
]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("folder, instead", RENDERED, ids=lambda x: getattr(x, "name", ""))
def test_kustomize_renders_what_is_applied(folder, instead):
    command = ["kubectl", "kustomize", folder]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    manifests = list(yaml.load_all(result.stdout, Strict))
    assert {manifest["kind"] for manifest in manifests} == instead | RENDERED_ALWAYS
    for manifest in manifests:
        if manifest["kind"] == "InferenceService": continue
        kubernetes_validate.validate(manifest, NEWEST, strict=True)
    images = set(re.findall(r"'image': '([^']+)'", str(manifests)))
    assert images == {f"registry.example.org/mlgov:{__version__}"}


def test_selectors_find_the_pods_and_only_these():
    served, closing = labels(PODS["deployment"]), labels(PODS["cronjob"])
    spread = PODS["deployment"]["spec"]["topologySpreadConstraints"]
    selectors = [
        DEPLOYMENT["spec"]["selector"]["matchLabels"],
        read("service.yaml")["spec"]["selector"],
        read("pdb.yaml")["spec"]["selector"]["matchLabels"],
        *[constraint["labelSelector"]["matchLabels"] for constraint in spread],
    ]
    for selector in selectors:
        assert selector.items() <= served
        assert not selector.items() <= closing
    everybody = read("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"].items()
    assert all(everybody <= labels(pod) for pod in PODS.values())
    assert served == labels(PODS["kserve"])


def test_probes_and_ports_exist():
    app, port = App({}), re.search(r"AIP_HTTP_PORT:-(\d+)", ENTRYPOINT.read_text())[1]
    assert f"EXPOSE {port}\n" in DOCKERFILE and f"'AIP_HTTP_PORT', {port}" in DOCKERFILE
    for pod in SERVING:
        container = container_of(pod)
        ports = {p["name"]: p["containerPort"] for p in container["ports"]}
        assert ports == {"http": int(port)}
        for probe in PROBES:
            request = container[probe]["httpGet"]
            route, _ = app.find(dict(method="GET", path=request["path"]))
            assert request["port"] in ports
            assert route.need is None      # the kubelet has no token
            assert route.name == ("readyz" if probe == "readinessProbe" else "livez")
    (service_port,), (rule,) = read("service.yaml")["spec"]["ports"], read("networkpolicy.yaml")["spec"]["ingress"]
    assert service_port["targetPort"] in ports
    assert [p["port"] for p in rule["ports"]] == ["http"]


def test_settings_are_those_that_the_service_reads():
    sources = "".join(p.read_text() for p in (ROOT/"mlgov_nb").rglob("*.py"))
    known = {f"MLGOV_{field.upper()}" for field in ServiceSettings.model_fields}
    known |= set(re.findall(r"\"(MLGOV_[A-Z_]+)\"", sources))
    given = read("configmap.yaml")["data"]
    for names in [given, image_env(), *map(env_of, PODS.values())]:
        assert {name for name in names if name.startswith("MLGOV_")} <= known
    ServiceSettings.from_env({}, given)      # names and values
    for pod in PODS.values():
        assert pod["spec"]["enableServiceLinks"] is False      # a Service called mlgov would set MLGOV_PORT


def test_there_is_time_to_stop_and_room_for_what_is_kept():
    settings = ServiceSettings.from_env({}, read("configmap.yaml")["data"])
    for pod in SERVING:
        container = container_of(pod)
        before_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
        to_finish = int(argument(pod, "--timeout-graceful-shutdown"))
        assert to_finish > settings.timeout_s
        assert pod["spec"]["terminationGracePeriodSeconds"] >= before_stop + to_finish + 10

        requested = container["resources"]["requests"]
        batches = settings.workers * settings.max_batch_mb
        tmp = mebibytes(volume(pod, "tmp")["emptyDir"]["sizeLimit"])
        assert batches < tmp < mebibytes(requested["ephemeral-storage"])
        assert int(requested["cpu"]) == settings.workers


def test_the_autoscaler_scales_the_deployment_by_a_metric_that_is_exported():
    spec = read("hpa.yaml")["spec"]
    deployment = dict(apiVersion=DEPLOYMENT["apiVersion"], kind=DEPLOYMENT["kind"], name=DEPLOYMENT["metadata"]["name"])
    assert {key: spec["scaleTargetRef"][key] for key in deployment} == deployment
    assert "replicas" not in DEPLOYMENT["spec"]

    (metric,) = spec["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in {exported.name for exported in Counters().registry.collect()}
    (rule,), (job,) = read("prometheus-adapter.yaml")["rules"]["custom"], read("prometheus-scrape.yaml")
    assert rule["seriesQuery"].startswith(name + "{")
    assert set(rule["resources"]["overrides"]) <= {relabel.get("target_label") for relabel in job["relabel_configs"]}


def referred_to(pod):
    "Kind and name of what a pod refers to"
    spec = pod["spec"]
    found = {("ServiceAccount", spec["serviceAccountName"])}
    found |= {("ConfigMap", source["configMapRef"]["name"]) for source in container_of(pod).get("envFrom", [])}
    for v in spec["volumes"]:
        if "persistentVolumeClaim" in v: found.add(("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"]))
        if "secret" in v: found.add(("Secret", v["secret"]["secretName"]))
    return found


def test_what_pods_refer_to_is_there():
    there = {(manifest["kind"], manifest["metadata"]["name"]) for manifest in map(read, MANIFESTS)}
    for pod in PODS.values(): assert referred_to(pod) <= there


def test_the_example_secret_has_the_files_and_opens_nothing(tmp_path, monkeypatch):
    example = read("secret.example.yaml")["stringData"]
    for pod in SERVING:
        folder = next(m["mountPath"] for m in container_of(pod)["volumeMounts"] if m["name"] == "secret")
        env = env_of(pod)
        assert {f"{folder}/{name}" for name in example} == {env["MLGOV_TOKENS_FILE"], env["MLGOV_SUBJECT_KEY_FILE"]}
    for name, content in example.items(): (tmp_path/name).write_text(content)
    monkeypatch.setenv("MLGOV_SUBJECT_KEY_FILE", str(tmp_path/"subject.key"))
    with pytest.raises(MlgovError, match="is not a token"): read_tokens(tmp_path/"tokens.json")
    with pytest.raises(MlgovError, match="shorter than 16"): subject_secret()


@pytest.mark.parametrize("name", PODS)
def test_pods_are_hardened_and_every_path_that_is_written_is_mounted(name):
    pod, ((uid, gid),) = PODS[name], re.findall(r"^USER (\d+):(\d+)$", DOCKERFILE, re.M)
    spec, container = pod["spec"], container_of(pod)
    hardened = dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=["ALL"]))
    assert container["securityContext"] == hardened
    context = spec["securityContext"]
    assert context["runAsNonRoot"] and (context["runAsUser"], context["runAsGroup"]) == (int(uid), int(gid))
    assert context["seccompProfile"] == dict(type="RuntimeDefault")
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert "memory" in container["resources"]["limits"]

    kinds = mounts(pod)
    writable = [path for path, kind in kinds.items() if kind != "secret"]
    env = {**image_env(), **env_of(pod)}
    for path in ["/tmp", env["BENTOML_HOME"], env["NUMBA_CACHE_DIR"], env["MLGOV_LOG_DIR"]]:
        assert any(Path(path).is_relative_to(mount) for mount in writable), path
    log_mount = next(mount for mount in writable if Path(env["MLGOV_LOG_DIR"]).is_relative_to(mount))
    assert kinds[log_mount] == "persistentVolumeClaim"


def test_the_nightly_command_exists():
    program, *arguments = container_of(PODS["cronjob"])["args"]
    start = DOCKERFILE[DOCKERFILE.index("printf"):DOCKERFILE.index(f"> /opt/venv/bin/{program}")]
    source = "\n".join(re.findall(r"'([^#%][^']+)'", start))      # the image's own `mlgov`
    command = [sys.executable, "-c", source, *arguments, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def pipeline_outputs():
    "The paths that stages make, of those that need no further settings"
    stages = yaml.safe_load((ROOT/"dvc.yaml").read_text())["stages"]
    return {out for stage in stages.values() for out in stage.get("outs", []) if isinstance(out, str)}


def copied_sources():
    "What the Dockerfile copies from the project"
    lines = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    return {word for line in lines for word in shlex.split(line)[:-1] if not word.startswith("--")}


def test_image_copies_what_there_is():
    made = {"release/served"}      # by `make run`
    assert made <= pipeline_outputs()
    allowed = {line[1:] for line in (ROOT/".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = copied_sources()
    assert sources == allowed
    assert all((ROOT/source).exists() for source in sources - made)
    assert os.access(ENTRYPOINT, os.X_OK)


# -- what serving needs ------------------------------------------------------------------------------------------------

def locked_names(file):
    "The distributions that a lock names"
    lines = (ROOT/file).read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]) for line in lines if line and line[0] != "#"}


SERVE = locked_names("requirements-serve.lock")
NOT_FOR_SERVING = {"torch", "jupyterlab", "dvc", "papermill", "evidently", "shap", "fairlearn", "scikit-learn",
                   "matplotlib", "pytest"}


def lock_tool():
    "tools/lock.py as a module"
    spec = importlib.util.spec_from_file_location("lock", ROOT/"tools/lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lock_of_the_service_is_part_of_the_lock_and_whole():
    lock, everything = lock_tool(), locked_names("requirements.lock")
    made = lock.serve_lock((ROOT/"requirements.lock").read_text())
    assert (ROOT/"requirements-serve.lock").read_text() == made
    assert all(map(lock.portable, everything)) and not lock.portable("nvidia-cublas")
    assert everything >= SERVE
    assert lock.closure(SERVE, importlib.metadata.requires) == SERVE
    assert "bentoml" in SERVE and not SERVE & NOT_FOR_SERVING
    bento = yaml.safe_load((ROOT/"bentofile.yaml").read_text())
    assert bento["python"]["requirements_txt"] == "./requirements-serve.lock"
    with pytest.raises(SystemExit, match=r"which requirements\.lock does not have"): lock.serve_lock("numpy==2.4.6\n")


def top_of(name):
    "A module without what stands in its functions and classes"
    tree = module_tree(name)
    imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return ast.Module(imports, [])


def packages_of(name, everywhere):
    "The packages outside this project that a module imports: at its top, or anywhere in it"
    nodes = ast.walk(module_tree(name) if everywhere else top_of(name))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import): names |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom) and not node.level: names.add(node.module.split(".")[0])
    return names - set(sys.stdlib_module_names) - {"mlgov_nb"}


def folder_of(name):
    "What is imported before a module: its folder's `__init__`"
    return {f"{name.split('.')[0]}.__init__"} if "." in name else set()


def test_modules_of_the_service_import_only_what_its_lock_has():
    """What they import at the top, with all that this imports; and in functions, for the modules of the log and the
    service themselves"""
    distributions = importlib.metadata.packages_distributions()
    own = {name for name in MODULES if name.split(".")[0] in ("log", "serve", "service")}
    assert {"log.segment", "service"} <= own
    waiting, checked = {*own, "cli.main"}, set()
    while waiting:
        name = waiting.pop()
        checked.add(name)
        imported = imported_modules(name, None if name in own else top_of(name))
        waiting |= (imported | folder_of(name)) - checked
        for package in packages_of(name, name in own):
            found = {canonicalize_name(d) for d in distributions.get(package, [])}
            advice = "add it to pyproject.toml's group `serve`, then `python tools/lock.py --serve`"
            assert found & SERVE, f"{name} imports {package}: {advice}"


class Image(Service):
    "Started by a copy of the entrypoint; its arguments override those in the file"
    def start(self):
        file = self.root/"output.txt"
        command = [self.root/"entrypoint.sh", "serve", "--host", "127.0.0.1"]
        env = self.env | {"AIP_HTTP_PORT": str(self.port)}
        with file.open("w") as output:
            self.process = subprocess.Popen(command, cwd=self.root, env=env, stdout=output, stderr=subprocess.STDOUT,
                                            start_new_session=True)
        self.process.stdout = file.open()      # read when the process ends too early
        wait_ready(f"{self.url}/readyz", self.process)


BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {0}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def absent_packages():
    "The packages of this environment that the service's lock does not install"
    present = SERVE | {"mlgov-nb"}
    packages = importlib.metadata.packages_distributions()
    return {package for package, found in packages.items() if not {canonicalize_name(d) for d in found} & present}


def compiled_files(folder): return {file.name for file in folder.rglob("*.nbc")}


def run_python(source, *arguments, env, cwd=None):
    command = [sys.executable, "-c", source, *arguments]
    return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow("installs the locked packages and starts a service")
def test_the_image_s_files_serve_with_the_locked_packages_only(tmp_path):
    "The Dockerfile's warm-up and the entrypoint, in processes that see only what requirements-serve.lock installs"
    example, env = sample_release(tmp_path/"served"), plain_env(tmp_path)
    absent, only, numba = absent_packages(), tmp_path/"only", tmp_path/"numba"
    assert {"sklearn", "torch", "IPython"} <= absent
    only.mkdir()
    (only/"sitecustomize.py").write_text(BLOCK.format(absent))
    env |= {"PYTHONPATH": f"{only}:{ROOT}", "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(numba)}
    assert run_python("import sklearn", env=env).returncode == 1

    (warm_up,) = re.findall(r"/opt/venv/bin/python -c \"(.+?)\"", DOCKERFILE)
    here = warm_up.replace("/opt/mlgov/release/served", str(tmp_path/"served"))
    result = run_python(here, env=env, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    compiled = compiled_files(numba)
    assert compiled

    shutil.copy(ENTRYPOINT, tmp_path)      # beside `numba`, as in the image
    run = tmp_path/"run"
    env |= {"NUMBA_CACHE_DIR": str(run/"numba"), "BENTOML_HOME": str(run/"bentoml")}
    service = Image(tmp_path, env, workers=1)
    try:
        service.start()
        assert service.ask("/v1/predict", example)[0] == 200
        assert service.ask("/v1/explain?counterfactuals=true", example)[0] == 200
        assert compiled_files(run/"numba") == compiled, "something was compiled after the image was built"
    finally: service.stop()
    assert len(service.records()) == 2

    close = ["log", "close", "--window", "today"]
    result = run_python("from mlgov_nb.cli.main import main\nmain()", *close, env=service.env, cwd=tmp_path)
    assert result.returncode == 0 and "2 rows" in result.stdout, result.stderr
