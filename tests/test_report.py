"""The report page: what it says of known tables, what it keeps to itself, and how it behaves."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sdv.metadata import Metadata

from sdv_nvib.errors import InvalidParameterError
from sdv_nvib.quality import DISTANCE_AUC, LIKELIHOOD_AUC, bin_tables, evaluate_quality
from sdv_nvib.report import write_report

BROWSER, DRIVER = shutil.which('chromium'), shutil.which('chromedriver')
HOSTILE = '</script><b>gap'  # a column's name must not become a part of the page
SECTIONS = ('verdict', 'scores', 'columns', 'pairs', 'missing', 'training', 'made')
COLUMNS = {
    'key': {'sdtype': 'id'},
    'x': {'sdtype': 'numerical', 'range_min': -87.654, 'range_max': 87.654},
    'when': {'sdtype': 'datetime'},
    'kind': {'sdtype': 'categorical'},
    HOSTILE: {'sdtype': 'numerical'},
}


def make_metadata(columns=COLUMNS, **keys):
    return Metadata.load_from_dict({'tables': {'t': {'columns': columns, **keys}}})


def make_table(rows, seed):
    """Two numbers, one with gaps, a date that follows the first, and a category."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=rows)
    return pd.DataFrame(
        {
            'key': np.arange(rows) + 1000 * seed,
            'x': x,
            'when': pd.Timestamp('2020-01-01') + pd.to_timedelta((100 * x).round(), unit='D'),
            'kind': np.where(x + rng.normal(size=rows) > 0, 'high', 'low'),
            HOSTILE: pd.Series(rng.normal(size=rows)).mask(rng.random(rows) < 0.2),
        }
    )


@pytest.fixture(scope='module')
def page(tmp_path_factory):
    """A report of a table that copies its training rows, with a history of two epochs."""
    history = pd.DataFrame(
        {
            'Epoch': [1, 2],
            'Loss': [4.0, 3.0],
            'Validation Loss': [4.1, 3.5],
            'Nats': [10.0, 12.0],
            'Active Components': [3.0, 3.5],
        }
    )
    real = make_table(120, 1)
    path = tmp_path_factory.mktemp('report') / 'page.html'
    write_report(
        path,
        {'t': real},
        {'t': real.assign(key=range(5000, 5120))},
        make_metadata(primary_key='key'),
        test=make_table(100, 2),
        target='kind',
        history=history,
        parameters={'epochs': 2, 'd_model': 16},
    )
    return path


def verdicts(text):
    return re.findall(r'<span class="status">(.*?)</span>', text)


def test_the_page_is_whole_and_needs_no_network(page):
    text = page.read_text(encoding='utf-8')
    for section in SECTIONS:
        assert f'<section id="{section}"' in text
    for measure in ('SDMetrics quality', 'C2ST', 'DCR share', 'exact copies', 'utility'):
        assert f'<th scope="row">{measure}<' in text
    own = re.sub(r'(?s)<script>.*?</script>', '', text)  # plotly.js names hosts it does not ask
    assert not re.findall(r'(?:src|href)="(?!#|data:,)', own)
    assert page.stat().st_size < 6_000_000
    assert [path.name for path in page.parent.iterdir()] == ['page.html']


def test_copied_rows_are_said_and_names_are_escaped(page):
    text = page.read_text(encoding='utf-8')
    assert verdicts(text)[:2] == ['Good', 'Check']
    assert '100.00% of the synthetic rows equal a real row' in text
    assert HOSTILE not in text
    assert '&lt;/script&gt;&lt;b&gt;gap' in text


def test_no_value_of_a_row_is_in_the_page(page):
    own = re.sub(r'(?s)<script>.*?</script>', '', page.read_text(encoding='utf-8'))
    real = make_table(120, 1)
    assert not [x for x in real['x'] if f'{x:.6f}' in own]
    assert str(real['when'].min())[:10] not in own
    assert '87.654' not in own  # the metadata name the ends of the range


def test_sensitive_columns_and_measures_of_the_model_stand_under_privacy(tmp_path):
    columns = {name: COLUMNS[name] for name in ('x', 'kind')}
    real, made, test = (make_table(60, seed)[list(columns)] for seed in (1, 2, 3))
    of_model = pd.DataFrame(
        [
            ('nats through the bottleneck', 12.345, np.nan, 'Bounds.'),
            ('membership inference by likelihood (AUC)', 0.512, 0.5, 'Attack.'),
        ],
        columns=['measure', 'value', 'ideal', 'meaning'],
    )
    tables, attack = (real, made, make_metadata(columns)), {'sensitive': ['kind'], 'known': ['x']}
    evaluation = evaluate_quality(*tables, test=test, **attack)
    summary = pd.concat([evaluation.summary, of_model], ignore_index=True)
    path = tmp_path / 'p.html'
    write_report(
        path, *tables, test=test, evaluation=replace(evaluation, summary=summary), **attack
    )
    text = path.read_text(encoding='utf-8')
    privacy = text[text.index('<h3 id="scores-privacy"') :]
    privacy = privacy[: privacy.index('</table>')]
    for measure, value in (
        ('disclosure protection of kind', None),
        ('nats through the bottleneck', '12.345'),
        ('membership inference by likelihood (AUC)', '0.512'),
        ('membership inference by distance (TPR at 1 % FPR)', '0.010'),
    ):
        assert f'<th scope="row">{measure}<' in privacy
        assert value is None or value in privacy


def test_attacks_that_succeed_are_in_the_verdict(tmp_path):
    columns = {name: COLUMNS[name] for name in ('x', 'kind')}
    real, made, test = (make_table(60, seed)[list(columns)] for seed in (1, 2, 3))
    tables = real, made, make_metadata(columns)
    evaluation = evaluate_quality(*tables, test=test)
    rows = evaluation.summary.set_index('measure')
    rows.loc[['DCR share', 'exact copies'], 'value'] = [0.5, 0.0]
    told = []
    for of_rows, of_model in ((0.5, 0.5), (0.5, 0.9), (0.8, 0.9)):
        rows.loc[DISTANCE_AUC, 'value'] = of_rows
        rows.loc[LIKELIHOOD_AUC] = [of_model, 0.5, 'Attack.']
        changed = replace(evaluation, summary=rows.reset_index())
        write_report(tmp_path / 'p.html', *tables, test=test, evaluation=changed)
        text = (tmp_path / 'p.html').read_text(encoding='utf-8')
        told.append((verdicts(text)[1], 'pass on the rows' in text, 'AUC 0.80' in text))
    assert told == [('Good', False, False), ('Good', True, False), ('Check', True, True)]


def test_fifty_columns_stay_below_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    numbers = {f'a_rather_long_name_{k}': {'sdtype': 'numerical'} for k in range(25)}
    labels = {f'another_long_name_{k}': {'sdtype': 'categorical'} for k in range(25)}
    names = np.array([f'the label of number {k}' for k in range(30)])

    def table():
        made = {name: rng.normal(size=40) for name in numbers}
        return pd.DataFrame(made | {name: rng.choice(names, 40) for name in labels})

    path = tmp_path / 'wide.html'
    write_report(path, table(), table(), make_metadata(numbers | labels))
    text = path.read_text(encoding='utf-8')
    assert text.count('"error":') == 50
    assert '"49-48":' in text  # the plot of every pair
    assert path.stat().st_size < 10_000_000


def test_without_test_rows_privacy_is_not_judged(tmp_path):
    table = make_table(60, 1)[['x']]
    one = make_metadata({'x': {'sdtype': 'numerical'}})
    write_report(tmp_path / 'p.html', table, make_table(60, 2)[['x']], one)
    text = (tmp_path / 'p.html').read_text(encoding='utf-8')
    assert verdicts(text)[1:] == ['Not measured', 'Not measured']
    assert 'The table has one modelled column' in text


def test_other_tables_are_refused_and_leave_no_file(tmp_path):
    table = make_table(20, 1)
    with pytest.raises(InvalidParameterError, match="synthetic must hold the table 't'"):
        write_report(tmp_path / 'p.html', table, {'u': table}, make_metadata())
    assert not list(tmp_path.iterdir())


def test_bins_are_open_shared_and_count_every_row():
    real, synthetic = make_table(500, 1), make_table(300, 2)
    real.loc[0, 'x'] = 1e6
    binned = bin_tables(real, synthetic, make_metadata(primary_key='key'), bins=12)
    assert list(binned.labels) == ['x', 'when', 'kind', HOSTILE]
    assert binned.labels['kind'] == ['high', 'low'] or binned.labels['kind'] == ['low', 'high']
    assert binned.labels[HOSTILE][-1] == '(missing)'
    assert binned.labels['x'][0].startswith('below')
    assert not any('1000000' in label for label in binned.labels['x'])
    for j, (name, labels) in enumerate(binned.labels.items()):
        counts = np.bincount(binned.real[:, j], minlength=len(labels))
        assert len(counts) == len(labels) <= 13
        assert counts.sum() == 500
        if labels[-1] == '(missing)':
            assert counts[-1] == real[name].isna().sum()


def test_few_values_have_a_bin_each_and_rare_labels_share_one():
    columns = {'n': {'sdtype': 'numerical'}, 'c': {'sdtype': 'categorical'}}
    real = pd.DataFrame({'n': [0, 0, 1, 5] * 5, 'c': list('aaaabbbcccddefghijkl')})
    binned = bin_tables(real, real.assign(c='unheard'), make_metadata(columns), bins=4)
    assert binned.labels == {'n': ['0', '1', '5'], 'c': ['a', 'b', 'c', '(others)']}
    assert np.bincount(binned.real[:, 0]).tolist() == [10, 5, 5]
    assert set(binned.synthetic[:, 1]) == {3}


@pytest.fixture(scope='module', params=[(1200, 900), (390, 844)], ids=['desktop', 'phone'])
def browser(request, page):
    """The page in headless Chromium, at the width of a desktop and of a phone."""
    if not (BROWSER and DRIVER):
        pytest.skip('chromium and chromedriver are not installed')
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ('headless=new', 'no-sandbox', 'disable-dev-shm-usage', 'disable-gpu'):
        options.add_argument(f'--{argument}')
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    width, height = request.param
    size = {'width': width, 'height': height, 'deviceScaleFactor': 1, 'mobile': width < 600}
    driver.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    driver.set_script_timeout(300)  # the accessibility check of the whole page is one script
    driver.get(page.as_uri())
    yield driver
    driver.quit()


@pytest.mark.browser
def test_the_page_draws_fits_and_opens_pairs_in_a_browser(browser):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.execute_script('dispatchEvent(new Event("beforeprint"))')  # draws all that is shown
    assert browser.execute_script('return document.body.scrollWidth') == 680  # of paper
    assert browser.find_element(By.CSS_SELECTOR, '#metadata pre').is_displayed()
    pictures = browser.find_elements(By.CSS_SELECTOR, 'main figure .chart')
    widths = (
        "return ['', '.main-svg'].map((s) => (s ? arguments[0].querySelector(s) : arguments[0])"
    )
    widths += '.getBoundingClientRect().width)'
    on_paper = [browser.execute_script(widths, picture) for picture in pictures]
    assert all(300 < drawn <= place + 1 for place, drawn in on_paper)
    browser.execute_script('dispatchEvent(new Event("afterprint"))')
    on_screen = [browser.execute_script(widths, picture) for picture in pictures]
    assert all(abs(place - drawn) <= 1 for place, drawn in on_screen)
    assert not browser.find_element(By.CSS_SELECTOR, '#metadata pre').is_displayed()
    for section in SECTIONS:
        assert browser.find_element(By.ID, section).is_displayed()
    drawn = browser.find_elements(By.CSS_SELECTOR, '#columns figure .chart .main-svg')
    assert len(drawn) >= 4
    width = browser.execute_script('return document.documentElement.scrollWidth')
    assert width <= browser.execute_script('return innerWidth')

    dialog = browser.find_element(By.ID, 'pair')
    assert not dialog.is_displayed()
    worst = browser.find_element(By.CSS_SELECTOR, '[data-pair]')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', worst)
    worst.send_keys(Keys.ENTER)  # the keyboard is enough
    assert dialog.is_displayed()
    assert dialog.find_element(By.ID, 'pair-title').text == worst.text
    assert len(dialog.find_elements(By.CSS_SELECTOR, '.heatmaplayer image')) == 2
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not dialog.is_displayed()

    heat = browser.find_element(By.CSS_SELECTOR, '#heat .nsewdrag')
    browser.execute_script('arguments[0].scrollIntoView({block: "center"})', heat)
    size = heat.size  # the second cell of the first row
    x, y = round(-0.1 * size['width']), round(-0.4 * size['height'])
    ActionChains(browser).move_to_element_with_offset(heat, x, y).click().perform()
    assert dialog.is_displayed()
    dialog.find_element(By.TAG_NAME, 'button').click()
    assert not [entry for entry in browser.get_log('browser') if entry['level'] == 'SEVERE']


@pytest.mark.browser
def test_axe_finds_nothing_serious(browser):
    from axe_selenium_python import Axe

    axe = Axe(browser)
    axe.inject()
    for opened in (
        '',
        'document.querySelectorAll("details").forEach((one) => { one.open = true; })',
        'document.querySelector("[data-pair]").click()',
    ):
        browser.execute_script(opened)
        found = axe.run()
        assert len(found['passes']) > 10
        assert not [v for v in found['violations'] if v['impact'] in ('serious', 'critical')]
    assert browser.find_element('id', 'pair').is_displayed()
