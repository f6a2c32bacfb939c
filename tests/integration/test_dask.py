"""Dask's tasks in fresh processes of their workers, on clusters of several workers, on loopback.

Each cluster is a program of its own, which writes what it has seen; most tests are about the first one.
"""

from __future__ import annotations

import importlib.util
import json

import pytest
from support.processes import is_alive
from support.programs import Programs

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
)

TASKS = """
    import os
    import time

    def squared(number):
        return number * number, os.getpid(), os.getppid()

    def met(folder, number, count):
        "Return once as many tasks as that are here."
        with open(os.path.join(folder, str(number)), "w"):
            pass
        while len(os.listdir(folder)) < count:
            time.sleep(0.002)
        return squared(number)

    def die():
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.abort()

    def fail():
        raise KeyError("why")

    def tell_pid_and_stay(path):
        with open(path + ".part", "w") as stream:
            stream.write(str(os.getpid()))
        os.rename(path + ".part", path)
        time.sleep(600)

    def wait_for(path):
        while not os.path.exists(path):
            time.sleep(0.002)
"""

LOCAL_CLUSTER = """
    import json, os, sys
    import dask
    from dask.distributed import Client, LocalCluster
    from fastfork.dask import FreshProcesses
    import tasks

    def parents(worker_pids, results):
        "The workers whose templates the processes came from."
        with_parents = {}
        for _, pid, template in results:
            with open(f"/proc/{template}/stat") as stream:
                with_parents[pid] = worker_pids.index(int(stream.read().rpartition(")")[2].split()[1]))
        return with_parents

    def described(future):
        error = future.exception(timeout=40)
        return [type(error).__name__, str(error)]

    def stay():
        tasks.tell_pid_and_stay(os.path.abspath("stays"))

    def main():
        folder = os.path.abspath("meeting")
        os.mkdir(folder)
        seen = {}
        with LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="localhost:0"
        ) as cluster, Client(cluster) as client:
            client.register_plugin(FreshProcesses("limited", timeout=0.5, grace=0.1))
            with dask.annotate(executor="limited"):
                seen["slow"] = described(client.submit(tasks.tell_pid_and_stay, os.path.abspath("slow")))
            seen["other"] = client.submit(os.getpid, pure=False).result()

            client.register_plugin(FreshProcesses())  # in its place
            workers = list(client.run(os.getpid).values())
            seen["workers"] = workers
            seen["addresses"] = list(client.run(os.getpid))

            results = client.gather(
                [
                    client.submit(tasks.met, folder, number, 2, workers=[address])
                    for number, address in enumerate(seen["addresses"])
                ]
            )
            results += client.gather(client.map(tasks.squared, range(2, 12), pure=False))
            seen["results"] = results
            seen["parents"] = parents(workers, results)

            good = client.submit(tasks.squared, 5, pure=False)
            seen["died"] = described(client.submit(tasks.die))
            seen["good"] = good.result()[0]
            seen["failed"] = described(client.submit(tasks.fail))
            factor = 3
            seen["lambda"] = client.submit(lambda number: number * factor, 4).result()
            squares = [dask.delayed(pow)(number, 2) for number in range(5)]
            seen["graph"] = dask.delayed(sum)(squares).compute()
            seen["workers after"] = list(client.run(os.getpid).values())

            staying = client.submit(stay)
            tasks.wait_for("stays")
            with open("stays") as stream:
                seen["stayed"] = int(stream.read())
            client.unregister_worker_plugin("fastfork")
            seen["stopped"] = described(staying)
        print(json.dumps(seen))

    if __name__ == "__main__":
        main()
"""

OWN_PROGRAMS = """
    import json, os, subprocess, sys
    from dask.distributed import Client
    import tasks

    ON_LOOPBACK = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", os.path.abspath("scheduler.json")]

    def run(*words):
        command = [sys.executable, "-m", "dask", *words, *ON_LOOPBACK]
        return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": os.getcwd()})

    def main():
        processes = [run("scheduler", "--port", "0")]
        tasks.wait_for("scheduler.json")
        for number in range(2):
            processes.append(run("worker", "--nthreads", "1", "--no-nanny", "--preload", "fastfork.dask"))
        try:
            with Client(scheduler_file="scheduler.json") as client:
                client.wait_for_workers(2)
                workers = list(client.run(os.getpid).values())
                os.mkdir("meeting")
                folder = os.path.abspath("meeting")
                addresses = list(client.run(os.getpid))
                results = client.gather(
                    [
                        client.submit(tasks.met, folder, number, 2, workers=[address])
                        for number, address in enumerate(addresses)
                    ]
                )
                error = client.submit(tasks.die).exception()
                after = list(client.run(os.getpid).values())
            for process in reversed(processes):  # a worker that SIGTERM and its scheduler's end meet may hang
                process.terminate()
                process.wait(50)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        assert sorted(workers) == sorted(process.pid for process in processes[1:])
        print(json.dumps({"workers": workers, "results": results, "died": str(error), "workers after": after}))

    if __name__ == "__main__":
        main()
"""


def run(programs, source):
    programs.write("tasks.py", TASKS)
    outcome = programs.python(str(programs.write("program.py", source)))
    assert outcome.status == 0, outcome.stderr
    return json.loads(outcome.lines[-1])


@pytest.fixture(scope="module")
def seen(tmp_path_factory, _lasting_descriptors):
    """What a cluster of two workers, in processes of their own, has seen."""
    return run(Programs(tmp_path_factory.mktemp("cluster")), LOCAL_CLUSTER)


def test_each_task_has_a_process_of_its_own(seen):
    squares, pids, templates = zip(*seen["results"])
    assert list(squares) == [number**2 for number in range(12)]
    assert len(set(pids)) == 12
    assert len(set(templates)) == 2
    assert not {*pids, *templates} & set(seen["workers"])


def test_it_comes_from_a_template_of_its_worker(seen):
    assert set(seen["parents"].values()) == {0, 1}


def test_workers_are_on_loopback(seen):
    assert all(address.startswith("tcp://127.0.0.1:") for address in seen["addresses"])


def test_a_task_whose_process_dies_fails_alone_and_says_how(seen):
    name, text = seen["died"]
    assert name == "ProcessDiedError"
    assert text.startswith("the process of die")
    assert "was killed by SIGABRT" in text
    assert seen["good"] == 25


def test_the_workers_live_on(seen):
    assert seen["workers after"] == seen["workers"]


def test_an_exception_is_the_task_s(seen):
    assert seen["failed"] == ["KeyError", "'why'"]


def test_functions_that_no_import_finds(seen):
    assert seen["lambda"] == 12


def test_graphs(seen):
    assert seen["graph"] == 30


def test_a_time_limit_for_those_that_ask_for_it(seen):
    assert seen["slow"][0] == "TimeLimitError"


def test_others_are_the_worker_s_own(seen):
    assert seen["other"] in seen["workers"]


def test_what_runs_when_the_plugin_goes_is_killed(seen):
    """So it does when a worker closes, which has its plugins go first."""
    assert "was killed by SIGKILL" in seen["stopped"][1]
    assert not is_alive(seen["stayed"])


def test_workers_of_the_command_line(programs):
    seen = run(programs, OWN_PROGRAMS)
    _, pids, templates = zip(*seen["results"])
    assert len({*pids, *templates, *seen["workers"]}) == 6
    assert "was killed by SIGABRT" in seen["died"]
    assert seen["workers after"] == seen["workers"]


def test_fastfork_alone_needs_no_dask(programs):
    assert programs.run(
        """
        import sys
        import fastfork
        fastfork.Executor
        print("dask" in sys.modules, "distributed" in sys.modules)
        """
    ).lines == ["False False"]
