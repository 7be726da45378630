"""Ray and Spark draw the parts that one process draws."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pandas as pd
import pytest
from sdv.sampling import Condition
from test_parts import contents, make

from sdv_nvib import ConditionError

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.filterwarnings('ignore:We strongly recommend saving the metadata'),
    pytest.mark.filterwarnings('ignore:Only .* nats per row pass'),
]


@pytest.fixture(scope='module')
def synthesizer():
    return make()


def example(part):
    """The block of the guide that has this in it."""
    text = (ROOT / 'docs/pages/large_scale.md').read_text(encoding='utf-8')
    (block,) = (b.split('```')[0] for b in text.split('```py\n')[1:] if part in b.split('```')[0])
    return block


# ------------------------------------------------------------------------- Ray


@pytest.fixture(scope='module')
def ray():
    os.environ.setdefault('RAY_raylet_start_wait_time_s', '300')  # on a busy machine
    os.environ.setdefault('RAY_worker_niceness', '0')
    ray = pytest.importorskip('ray')
    paths = os.pathsep.join([str(ROOT), str(ROOT / 'tests')])
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        runtime_env={'env_vars': {'PYTHONPATH': paths}},
    )
    yield ray
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings('ignore')  # Ray's own
def test_ray_writes_what_one_process_does_also_when_a_worker_is_killed(ray, synthesizer, tmp_path):
    synthesizer.sample_to_parquet(tmp_path / 'plain', 6_000, 300)
    synthesizer.sample_to_parquet(tmp_path / 'one', 6_000, 300, engine='ray', workers=1)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'plain')

    def kill():
        while not killed:
            for path in Path('/proc').glob('[0-9]*'):
                try:
                    name = (path / 'cmdline').read_text()
                    parent = int((path / 'stat').read_text().rsplit(')')[-1].split()[1])
                    in_call = any((tmp_path / 'two').glob('part-*')) and name.startswith('ray::')
                    if in_call and 'RayWorker' in name and parent in raylets():
                        killed.append(len(list((tmp_path / 'two').glob('part-*'))))
                        os.kill(int(path.name), signal.SIGKILL)
                        return
                except OSError:
                    continue  # it has just ended
            time.sleep(0.05)

    killed = []
    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    synthesizer.sample_to_parquet(tmp_path / 'two', 6_000, 300, engine='ray', workers=2)
    assert killed
    assert killed[0] < 20
    assert contents(tmp_path / 'two') == contents(tmp_path / 'plain')


@pytest.mark.ray
@pytest.mark.filterwarnings('ignore')
def test_the_guide_for_ray_draws_the_same_rows(ray, synthesizer, tmp_path):
    code = example("engine='ray'")
    for whole, small in (
        ('/shared/rows', str(tmp_path / 'ray')),
        ('10**9', '1_000'),
        ('1_000_000', '300'),
        ('workers=64', 'workers=2'),
    ):
        assert whole in code
        code = code.replace(whole, small)
    exec(compile(code, 'large_scale.md', 'exec'), {'synthesizer': synthesizer})
    synthesizer.sample_to_parquet(tmp_path / 'plain', 1_000, 300)
    assert contents(tmp_path / 'ray') == contents(tmp_path / 'plain')


@pytest.mark.ray
@pytest.mark.filterwarnings('ignore')
def test_an_error_of_a_ray_worker_is_our_own(ray, synthesizer, tmp_path):
    conditions = [Condition({'high': 27}, num_rows=100)]  # drawn by rejection
    arguments = {'conditions': conditions, 'max_tries_per_batch': 1, 'engine': 'ray'}
    with pytest.raises(ConditionError, match='of 100 rows through in 1 tries'):
        synthesizer.sample_to_parquet(tmp_path / 'p', 100, **arguments)


def raylets():
    """Ray's process that starts workers, where this process started it."""
    found = set()
    for path in Path('/proc').glob('[0-9]*'):
        try:
            stat = (path / 'stat').read_text()
        except OSError:
            continue
        if '(raylet)' in stat and int(stat.rsplit(')')[-1].split()[1]) == os.getpid():
            found.add(int(path.name))
    return found


# ------------------------------------------------------------------------- Spark


@pytest.fixture(scope='module')
def spark():
    sql = pytest.importorskip('pyspark.sql')
    os.environ['PYSPARK_PYTHON'] = sys.executable
    session = (
        sql.SparkSession.builder.master('local[1]')
        .config('spark.ui.enabled', 'false')
        .config('spark.driver.bindAddress', '127.0.0.1')
        .config('spark.driver.host', '127.0.0.1')
        .config('spark.executorEnv.PYTHONPATH', str(ROOT))
        .getOrCreate()
    )
    yield session
    session.stop()


@pytest.mark.spark
@pytest.mark.filterwarnings('ignore')  # Spark's own
def test_the_guide_for_spark_draws_the_same_rows(spark, synthesizer, tmp_path):
    names = {
        'spark': spark,
        'synthesizer': synthesizer,
        'num_rows': 1_000,
        'rows_per_part': 300,
        'folder': str(tmp_path / 'spark'),
    }
    exec(compile(example('def draw_parts('), 'large_scale.md', 'exec'), names)
    table = pd.read_parquet(tmp_path / 'spark').sort_values('key', ignore_index=True)
    parts = (pd.concat(synthesizer.sample_part(part, 1_000, 300)) for part in range(4))
    plain = pd.concat(parts, ignore_index=True)
    pd.testing.assert_frame_equal(table, plain, check_dtype=False)
