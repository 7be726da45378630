"""What the bottleneck keeps of a row: vectors for other models, and rows like a given one."""

from sdv.single_table import NVIBSynthesizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()
synthesizer = NVIBSynthesizer(metadata, epochs=20)
synthesizer.fit({TABLE: real})

encoding = synthesizer.encode({TABLE: real})
print('one vector per row:', encoding.embedding.shape)
print('columns by pseudo-count:')
print(encoding.column_weights.sort_values(ascending=False).head(3).round(3).to_string())
read = synthesizer.attention_weights({TABLE: real}).loc['salary']
print('to answer for salary the decoder reads', read.idxmax(), f'({read.max():.0%})')
# A step of a scikit-learn pipeline: fitted here, transforms there.
embed = FunctionTransformer(lambda rows: synthesizer.encode({TABLE: rows}).embedding)
probe = make_pipeline(embed, LogisticRegression(max_iter=1000))
accuracy = cross_val_score(probe, real, real['gender']).mean()
print('gender from the vector (it went in, so this is easy):', round(accuracy, 2))

for variety in (0.0, 0.3, 1.0):
    alike = synthesizer.sample_similar({TABLE: real}, variety)[TABLE]
    same = (alike['high_spec'] == real['high_spec']).mean()
    print(f'variety {variety}: the same high_spec in {same:.0%} of rows')
