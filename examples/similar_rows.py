"""What the bottleneck keeps: vectors of rows, rows like others or between, what columns tell."""

from sdv.single_table import NVIBSynthesizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline

from sdv_nvib import RowEmbedder
from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=8)
synthesizer.fit({TABLE: real})

encoding = synthesizer.encode({TABLE: real})
print('one vector per row:', encoding.embedding.shape)
read = synthesizer.attention_weights({TABLE: real}).loc['salary']
print('to answer for salary the decoder reads', read.idxmax(), f'({read.max():.0%})')
# A step of a scikit-learn pipeline: fitted here, transforms there.
probe = make_pipeline(RowEmbedder(synthesizer), LogisticRegression(max_iter=1000))
accuracy = cross_val_score(probe, real, real['gender']).mean()
print('gender from the vector (it went in, so this is easy):', round(accuracy, 2))

for variety in (0.0, 0.3, 1.0):
    alike = synthesizer.sample_similar({TABLE: real}, variety)[TABLE]
    same = (alike['high_spec'] == real['high_spec']).mean()
    print(f'variety {variety}: the same high_spec in {same:.0%} of rows')

other = real.sample(frac=1, random_state=0)  # a counterpart for each row
for position in (0.0, 0.5, 1.0):
    between = synthesizer.sample_between({TABLE: real}, {TABLE: other}, position)[TABLE]
    first, last = (
        (between['second_perc'].array == end['second_perc'].array).mean() for end in (real, other)
    )
    print(f'position {position}: second_perc of the first in {first:.0%}, of the last {last:.0%}')

print(synthesizer.get_column_importance({TABLE: real}).head(5).round(3).to_string())
synthesizer.get_column_importance_plot({TABLE: real}).write_html('importance.html')
