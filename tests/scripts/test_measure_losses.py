"""What a run of the cluster's tests is kept as."""

import subprocess
import sys

import pytest

from scripts import measure_losses

REPORT = """<testsuites><testsuite>
<testcase name="test_a_pod_goes" time="12.34"><properties>
<property name="clients" value="4"/><property name="whole" value="40"/>
<property name="lost" value="[]"/></properties></testcase>
<testcase name="test_a_replica_is_killed" time="3"><properties>
<property name="clients" value="4"/><property name="whole" value="9"/>
<property name="lost" value='["NotWhole: status 502"]'/></properties>
<failure message="assert 1 == 0">…</failure></testcase>
<testcase name="test_nobody_came" time="1"/>
<testcase name="test_nothing_was_installed" time="9"><error message="timed out">…</error></testcase>
</testsuite></testsuites>"""


def test_of_each_scenario_what_became_of_its_requests():
    goes, killed, never = measure_losses.scenarios(REPORT)
    assert (never["scenario"], never["kept"], never["whole"]) == ("nothing was installed", False, 0)
    assert goes["scenario"] == "a pod goes"
    assert (goes["kept"], goes["whole"], goes["lost"]) == (True, 40, [])
    assert (killed["kept"], killed["lost"]) == (False, ["NotWhole: status 502"])
    assert killed["wrong"] == "assert 1 == 0"
    told = measure_losses.summed_up([goes, killed])
    assert told == {
        "scenarios": 2,
        "kept": 1,
        "whole": {"a pod goes": 40, "a replica is killed": 9},
        "lost": {"a pod goes": 0, "a replica is killed": 1},
    }


@pytest.mark.parametrize("where", ["kubernetes", "ray"])
def test_where_there_is_nothing_to_try_it_on_it_says_so(where, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(measure_losses, "MEASUREMENTS", tmp_path)
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setattr(measure_losses, "RAY", tmp_path / "python")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert measure_losses.main([where]) == 1
    assert "not measured" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_report_that_pytest_itself_writes_is_read(tmp_path):
    (tmp_path / "test_pods.py").write_text(
        "def test_a_pod_goes(record_property):\n"
        "    record_property('clients', 2)\n"
        "    record_property('whole', 3)\n"
        "    record_property('lost', '[\"x\"]')\n"
    )
    words = ["--junitxml=report.xml", "-o", "junit_family=xunit1", "-p", "no:cacheprovider"]
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tmp_path, check=True)
    (found,) = measure_losses.scenarios((tmp_path / "report.xml").read_text())
    assert (found["clients"], found["whole"], found["lost"]) == (2, 3, ["x"])
