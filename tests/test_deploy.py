"deploy/: manifests against the official schemas and against the service, the image's files, and the packages that serving needs"
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

K8S, KSERVE, DOCKER = ROOT/"deploy/kubernetes", ROOT/"deploy/kserve", (ROOT/"deploy/Dockerfile").read_text()
OLDEST, NEWEST = "1.30", "1.37"      # preStop.sleep works without a flag since the oldest
FRAGMENTS = {"kustomization.yaml", "prometheus-scrape.yaml", "prometheus-adapter.yaml"}    # for other programs than the cluster
MANIFESTS = sorted(p.name for p in K8S.glob("*.yaml") if p.name not in FRAGMENTS)


class Strict(yaml.SafeLoader):
    "YAML in which a key is given once"
    def construct_mapping(self, node, deep=False):
        keys = [k.value for k, _ in node.value]
        if twice := {k for k in keys if keys.count(k) > 1}: raise yaml.YAMLError(f"twice in one mapping: {twice}")
        return super().construct_mapping(node, deep)


def read(file, folder=K8S): return yaml.load((folder/file).read_text(), Strict)


# What KServe 0.20 adds to a PodSpec in spec.predictor, as far as it is used here (its CRD, serving.kserve.io/v1beta1)
PREDICTOR = dict(minReplicas={"type": "integer", "minimum": 0}, maxReplicas={"type": "integer", "minimum": 1}, scaleMetric={"enum": ["cpu", "memory", "concurrency", "rps"]},
                 scaleTarget={"type": "integer"}, deploymentStrategy={"type": "object"})
DEPLOYMENT, CRON, ISVC = read("deployment.yaml"), read("cronjob.yaml"), read("inferenceservice.yaml", KSERVE)
PREDICTED = {k: v for k, v in ISVC["spec"]["predictor"].items() if k not in PREDICTOR}
PODS = {"deployment": DEPLOYMENT["spec"]["template"], "cronjob": CRON["spec"]["jobTemplate"]["spec"]["template"], "kserve": dict(metadata=dict(labels=ISVC["metadata"]["labels"]), spec=PREDICTED)}
SERVING = [PODS["deployment"], PODS["kserve"]]


def labels(pod): return pod["metadata"]["labels"].items()
def container(pod): (c,) = pod["spec"]["containers"]; return c
def env(pod): return {e["name"]: e["value"] for e in container(pod).get("env", [])}
def arg(pod, name): return container(pod)["args"][container(pod)["args"].index(name) + 1]
def mounts(pod):
    kinds = {v["name"]: next(k for k in v if k != "name") for v in pod["spec"]["volumes"]}
    return {m["mountPath"]: kinds[m["name"]] for m in container(pod)["volumeMounts"]}
def volume(pod, name): return next(v for v in pod["spec"]["volumes"] if v["name"] == name)
def mebibytes(text): return int(text[:-2]) * {"Mi": 1, "Gi": 1024}[text[-2:]]
def image_env(): return dict(re.findall(r"(\w+)=(\S+)", DOCKER[DOCKER.rindex("\nENV"):DOCKER.index("\nWORKDIR")]))


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("file", MANIFESTS)
def test_manifests_follow_the_official_schema(file, version):
    doc = read(file)
    assert kubernetes_validate.validate(doc, version, strict=True) == version
    assert doc["metadata"].get("namespace", doc["metadata"]["name"]) == "mlgov"


def test_an_unknown_key_is_refused():
    bad = copy.deepcopy(DEPLOYMENT)
    bad["spec"]["template"]["spec"]["containers"][0]["lifecycle"]["preStop"]["sleep"]["second"] = 1
    with pytest.raises(kubernetes_validate.ValidationError): kubernetes_validate.validate(bad, NEWEST, strict=True)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_inference_service_is_a_pod_with_what_kserve_adds(version):
    kubernetes_validate.validate(dict(apiVersion="v1", kind="Pod", metadata=dict(name="x"), spec=PREDICTED), version, strict=True)
    own = {k: v for k, v in ISVC["spec"]["predictor"].items() if k in PREDICTOR}
    jsonschema.validate(own, dict(properties=PREDICTOR))
    as_deployment = copy.deepcopy(DEPLOYMENT)
    as_deployment["spec"]["strategy"] = own["deploymentStrategy"]
    kubernetes_validate.validate(as_deployment, version, strict=True)
    assert set(ISVC) == {"apiVersion", "kind", "metadata", "spec"} and set(ISVC["spec"]) == {"predictor"} and ISVC["apiVersion"] == "serving.kserve.io/v1beta1"
    assert container(PODS["kserve"])["name"] == "kserve-container" and env(PODS["kserve"])["PROTOCOL"] == "v2"
    assert env(PODS["kserve"])["MLGOV_NAME"] == ISVC["metadata"]["name"]


def test_kserve_runs_the_same_pod():
    ours, theirs = (copy.deepcopy(p["spec"]) for p in SERVING)
    for spec in (ours, theirs):
        spec.pop("topologySpreadConstraints", None)
        (c,) = spec["containers"]
        for k in ("name", "image"): c.pop(k)
        c["env"] = [e for e in c["env"] if e["name"] not in ("PROTOCOL", "MLGOV_NAME")]
        for k in ("startupProbe", "livenessProbe", "readinessProbe"): c[k]["httpGet"].pop("path")
    assert ours == theirs


def test_kustomization_names_every_manifest_and_the_images():
    k = read("kustomization.yaml")
    assert sorted([*k["resources"], "secret.example.yaml"]) == MANIFESTS      # the example is never applied
    (image,) = k["images"]
    assert {container(p)["image"] for p in PODS.values()} == {image["name"]} and image["newTag"] == __version__
    assert read("kustomization.yaml", KSERVE)["images"] == k["images"]


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
@pytest.mark.parametrize("folder, instead", [(K8S, {"Deployment", "Service", "HorizontalPodAutoscaler"}), (KSERVE, {"InferenceService"})], ids=lambda x: getattr(x, "name", ""))
def test_kustomize_renders_what_is_applied(folder, instead):
    docs = list(yaml.load_all(subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout, Strict))
    assert {d["kind"] for d in docs} == instead | {"Namespace", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim", "PodDisruptionBudget", "NetworkPolicy", "CronJob"}
    for d in docs: d["kind"] == "InferenceService" or kubernetes_validate.validate(d, NEWEST, strict=True)
    assert set(re.findall(r"'image': '([^']+)'", str(docs))) == {f"registry.example.org/mlgov:{__version__}"}


def test_selectors_find_the_pods_and_only_these():
    served, closing = labels(PODS["deployment"]), labels(PODS["cronjob"])
    spread = [t["labelSelector"]["matchLabels"] for t in PODS["deployment"]["spec"]["topologySpreadConstraints"]]
    for s in [DEPLOYMENT["spec"]["selector"]["matchLabels"], read("service.yaml")["spec"]["selector"], read("pdb.yaml")["spec"]["selector"]["matchLabels"], *spread]:
        assert s.items() <= served and not s.items() <= closing
    everybody = read("networkpolicy.yaml")["spec"]["podSelector"]["matchLabels"].items()
    assert all(everybody <= labels(p) for p in PODS.values()) and served == labels(PODS["kserve"])


def test_probes_and_ports_exist():
    app, port = App({}), re.search(r"AIP_HTTP_PORT:-(\d+)", (ROOT/"deploy/entrypoint.sh").read_text())[1]
    for pod in SERVING:
        ports = {p["name"]: p["containerPort"] for p in container(pod)["ports"]}
        assert ports == {"http": int(port)} and f"EXPOSE {port}\n" in DOCKER and f"'AIP_HTTP_PORT', {port}" in DOCKER
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            get = container(pod)[probe]["httpGet"]
            route, _ = app.find(dict(method="GET", path=get["path"]))
            assert get["port"] in ports and route.need is None and route.name == ("readyz" if probe == "readinessProbe" else "livez")     # the kubelet has no token
    (out,), (rule,) = read("service.yaml")["spec"]["ports"], read("networkpolicy.yaml")["spec"]["ingress"]
    assert out["targetPort"] in ports and [p["port"] for p in rule["ports"]] == ["http"]


def test_settings_are_those_that_the_service_reads():
    sources = "".join(p.read_text() for p in (ROOT/"mlgov_nb").rglob("*.py"))
    known = {f"MLGOV_{k.upper()}" for k in ServiceSettings.model_fields} | set(re.findall(r"\"(MLGOV_[A-Z_]+)\"", sources))
    given = read("configmap.yaml")["data"]
    for names in [given, image_env(), *map(env, PODS.values())]: assert {n for n in names if n.startswith("MLGOV_")} <= known
    ServiceSettings.from_env({}, given)                                        # names and values
    for pod in PODS.values(): assert pod["spec"]["enableServiceLinks"] is False      # a Service called mlgov would set MLGOV_PORT


def test_there_is_time_to_stop_and_room_for_what_is_kept():
    settings = ServiceSettings.from_env({}, read("configmap.yaml")["data"])
    for pod in SERVING:
        stop, asked = container(pod)["lifecycle"]["preStop"]["sleep"]["seconds"], container(pod)["resources"]
        assert int(arg(pod, "--timeout-graceful-shutdown")) > settings.timeout_s
        assert pod["spec"]["terminationGracePeriodSeconds"] >= stop + int(arg(pod, "--timeout-graceful-shutdown")) + 10
        batches, tmp = settings.workers * settings.max_batch_mb, mebibytes(volume(pod, "tmp")["emptyDir"]["sizeLimit"])
        assert batches < tmp < mebibytes(asked["requests"]["ephemeral-storage"]) and int(asked["requests"]["cpu"]) == settings.workers


def test_the_autoscaler_scales_the_deployment_by_a_metric_that_is_exported():
    spec = read("hpa.yaml")["spec"]
    target, (metric,) = spec["scaleTargetRef"], spec["metrics"]
    assert (target["apiVersion"], target["kind"], target["name"]) == (DEPLOYMENT["apiVersion"], DEPLOYMENT["kind"], DEPLOYMENT["metadata"]["name"]) and "replicas" not in DEPLOYMENT["spec"]
    name, (rule,), (job,) = metric["pods"]["metric"]["name"], read("prometheus-adapter.yaml")["rules"]["custom"], read("prometheus-scrape.yaml")
    assert name in {m.name for m in Counters().registry.collect()} and rule["seriesQuery"].startswith(name + "{")
    assert set(rule["resources"]["overrides"]) <= {r.get("target_label") for r in job["relabel_configs"]}


def test_what_pods_refer_to_is_there():
    have = {(d["kind"], d["metadata"]["name"]) for d in map(read, MANIFESTS)}
    for pod in PODS.values():
        used = {("ServiceAccount", pod["spec"]["serviceAccountName"])} | {("ConfigMap", e["configMapRef"]["name"]) for e in container(pod).get("envFrom", [])}
        for v in pod["spec"]["volumes"]:
            if "persistentVolumeClaim" in v: used.add(("PersistentVolumeClaim", v["persistentVolumeClaim"]["claimName"]))
            if "secret" in v: used.add(("Secret", v["secret"]["secretName"]))
        assert used <= have


def test_the_example_secret_has_the_files_and_opens_nothing(tmp_path, monkeypatch):
    example = read("secret.example.yaml")["stringData"]
    for pod in SERVING:
        at = next(m["mountPath"] for m in container(pod)["volumeMounts"] if m["name"] == "secret")
        assert {f"{at}/{k}" for k in example} == {env(pod)["MLGOV_TOKENS_FILE"], env(pod)["MLGOV_SUBJECT_KEY_FILE"]}
    for k, v in example.items(): (tmp_path/k).write_text(v)
    monkeypatch.setenv("MLGOV_SUBJECT_KEY_FILE", str(tmp_path/"subject.key"))
    with pytest.raises(MlgovError, match="is not a token"): read_tokens(tmp_path/"tokens.json")
    with pytest.raises(MlgovError, match="shorter than 16"): subject_secret()


@pytest.mark.parametrize("name", PODS)
def test_pods_are_hardened_and_every_path_that_is_written_is_mounted(name):
    pod, ((uid, gid),) = PODS[name], re.findall(r"^USER (\d+):(\d+)$", DOCKER, re.M)
    spec, own = pod["spec"], container(pod)["securityContext"]
    assert own == dict(allowPrivilegeEscalation=False, readOnlyRootFilesystem=True, capabilities=dict(drop=["ALL"]))
    group = spec["securityContext"]
    assert group["runAsNonRoot"] and (group["runAsUser"], group["runAsGroup"]) == (int(uid), int(gid)) and group["seccompProfile"] == dict(type="RuntimeDefault")
    assert spec["automountServiceAccountToken"] is False and not {"hostNetwork", "hostPID", "hostIPC"} & set(spec) and "memory" in container(pod)["resources"]["limits"]
    writable = [p for p, kind in mounts(pod).items() if kind != "secret"]
    written = {**image_env(), **env(pod)}
    for p in ["/tmp", written["BENTOML_HOME"], written["NUMBA_CACHE_DIR"], written["MLGOV_LOG_DIR"]]: assert any(Path(p).is_relative_to(w) for w in writable), p
    assert mounts(pod)[next(w for w in writable if Path(written["MLGOV_LOG_DIR"]).is_relative_to(w))] == "persistentVolumeClaim"


def test_the_nightly_command_exists():
    program, *args = container(PODS["cronjob"])["args"]
    start = DOCKER[DOCKER.index("printf"):DOCKER.index(f"> /opt/venv/bin/{program}")]      # the image's own `mlgov`
    got = subprocess.run([sys.executable, "-c", "\n".join(re.findall(r"'([^#%][^']+)'", start)), *args, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert got.returncode == 0, got.stderr


def test_image_copies_what_there_is():
    made = {"release/served"}                                                  # by `make run`
    assert made <= {o for s in yaml.safe_load((ROOT/"dvc.yaml").read_text())["stages"].values() for o in s.get("outs", []) if isinstance(o, str)}
    sources = [s for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKER, re.M) for s in shlex.split(line)[:-1] if not s.startswith("--")]
    allowed = {x[1:] for x in (ROOT/".dockerignore").read_text().splitlines() if x.startswith("!")}
    assert set(sources) == allowed and all((ROOT/s).exists() for s in set(sources) - made)
    assert os.access(ROOT/"deploy/entrypoint.sh", os.X_OK)


# -- what serving needs ------------------------------------------------------------------------------------------------

def names(file): return {canonicalize_name(x.split("==")[0]) for x in (ROOT/file).read_text().splitlines() if x and x[0] != "#"}
SERVE = names("requirements-serve.lock")


def test_lock_of_the_service_is_part_of_the_lock_and_whole():
    at = importlib.util.spec_from_file_location("lock", ROOT/"tools/lock.py")
    lock = importlib.util.module_from_spec(at)
    at.loader.exec_module(lock)
    assert (ROOT/"requirements-serve.lock").read_text() == lock.serve_lock((ROOT/"requirements.lock").read_text())
    assert all(map(lock.portable, names("requirements.lock"))) and not lock.portable("nvidia-cublas")
    assert SERVE <= names("requirements.lock") and lock.closure(SERVE, importlib.metadata.requires) == SERVE
    assert "bentoml" in SERVE and not SERVE & {"torch", "jupyterlab", "dvc", "papermill", "evidently", "shap", "fairlearn", "scikit-learn", "matplotlib", "pytest"}
    assert yaml.safe_load((ROOT/"bentofile.yaml").read_text())["python"]["requirements_txt"] == "./requirements-serve.lock"
    with pytest.raises(SystemExit, match="which requirements.lock does not have"): lock.serve_lock("numpy==2.4.6\n")


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


def test_modules_of_the_service_import_only_what_its_lock_has():
    "What they import at the top, with all that this imports; and in functions, for the modules of the log and the service themselves"
    distributions = importlib.metadata.packages_distributions()
    own = {name for name in MODULES if name.split(".")[0] in ("log", "serve", "service")}
    assert {"log.segment", "service"} <= own
    waiting, checked = {*own, "cli.main"}, set()
    while waiting:
        name = waiting.pop()
        checked.add(name)
        waiting |= imported_modules(name, None if name in own else top_of(name)) - checked
        for package in packages_of(name, name in own):
            found = {canonicalize_name(d) for d in distributions.get(package, [])}
            assert found & SERVE, f"{name} imports {package}: add it to pyproject.toml's group `serve`, then `python tools/lock.py --serve`"


class Image(Service):
    "Started by a copy of the entrypoint; its arguments override those in the file"
    def start(self):
        file = self.root/"said.txt"
        with open(file, "w") as said: self.process = subprocess.Popen([self.root/"entrypoint.sh", "serve", "--host", "127.0.0.1"], cwd=self.root, env=self.env | {"AIP_HTTP_PORT": str(self.port)}, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        self.process.stdout = open(file)
        wait_ready(f"{self.url}/readyz", self.process)


BLOCK = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {0}: raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
"""


def test_the_image_s_files_serve_with_the_locked_packages_only(tmp_path):
    "The Dockerfile's warm-up and the entrypoint, in processes that see nothing but what requirements-serve.lock installs"
    example, base = sample_release(tmp_path/"served"), plain_env(tmp_path)
    absent = {top for top, dists in importlib.metadata.packages_distributions().items() if not {canonicalize_name(d) for d in dists} & (SERVE | {"mlgov-nb"})}
    assert {"sklearn", "torch", "IPython"} <= absent
    (tmp_path/"only").mkdir()
    (tmp_path/"only/sitecustomize.py").write_text(BLOCK.format(absent))
    base |= {"PYTHONPATH": f"{tmp_path/'only'}:{ROOT}", "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path/"numba")}
    assert subprocess.run([sys.executable, "-c", "import sklearn"], env=base, capture_output=True).returncode == 1
    (program,) = re.findall(r"/opt/venv/bin/python -c \"(.+?)\"", DOCKER)
    got = subprocess.run([sys.executable, "-c", program.replace("/opt/mlgov/release/served", str(tmp_path/"served"))], env=base, cwd=tmp_path, capture_output=True, text=True)
    assert got.returncode == 0, got.stderr
    compiled = {f.name for f in (tmp_path/"numba").rglob("*.nbc")}
    assert compiled
    shutil.copy(ROOT/"deploy/entrypoint.sh", tmp_path)                         # beside `numba`, as in the image
    s = Image(tmp_path, base | {"NUMBA_CACHE_DIR": str(tmp_path/"run/numba"), "BENTOML_HOME": str(tmp_path/"run/bentoml")}, workers=1)
    try:
        s.start()
        assert s.ask("/v1/predict", example)[0] == 200 and s.ask("/v1/explain?counterfactuals=true", example)[0] == 200
        assert {f.name for f in (tmp_path/"run/numba").rglob("*.nbc")} == compiled, "something was compiled after the image was built"
    finally: s.stop()
    assert len(s.records()) == 2
    got = subprocess.run([sys.executable, "-c", "from mlgov_nb.cli.main import main\nmain()", "log", "close", "--window", "today"], env=s.env, cwd=tmp_path, capture_output=True, text=True)
    assert got.returncode == 0 and "2 rows" in got.stdout, got.stderr
