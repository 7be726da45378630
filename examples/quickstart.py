"""The main job on a table that a dependency ships: fit, sample, score, draw.

    python examples/quickstart.py [picture.png]

The table has numbers, categories, booleans, dates, missing values and a primary key.
"""

import sys

from sdv.single_table import NVIBSynthesizer

from sdv_nvib import save_plot
from sdv_nvib.demo import TABLE, load_demo


def main() -> None:
    picture = sys.argv[1] if len(sys.argv) > 1 else 'quickstart.png'
    real, metadata = load_demo()
    synthesizer = NVIBSynthesizer(metadata, verbose=True)
    synthesizer.fit({TABLE: real})
    synthetic = synthesizer.sample(num_rows=len(real))
    print(synthetic[TABLE].head().T.to_string())
    report = synthesizer.evaluate(real, target='placed')
    print(report.summary[['measure', 'value', 'ideal']].round(3).to_string(index=False))
    save_plot(real, synthetic[TABLE], metadata, picture)
    print(f'Real against synthetic: {picture}')


if __name__ == '__main__':
    main()
