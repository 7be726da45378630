"""A rare class: synthetic rows for training alone, beside class weights and SMOTE."""

import pandas as pd
from imblearn.over_sampling import SMOTENC
from sdv.sampling import Condition
from sdv.single_table import NVIBSynthesizer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from sdv_nvib.demo import TABLE, load_demo

real, metadata = load_demo()  # two in three are placed
train, test = train_test_split(real, test_size=0.4, stratify=real['placed'], random_state=0)

synthesizer = NVIBSynthesizer(metadata, epochs=20)
synthesizer.fit({TABLE: train})
missing = int(train['placed'].sum() - (~train['placed']).sum())
rare = Condition({'placed': False}, num_rows=missing)
balanced = pd.concat([train, synthesizer.sample_from_conditions([rare])[TABLE]])


def known(rows):
    columns = ['gender', 'second_perc', 'high_perc', 'high_spec', 'degree_perc', 'work_experience']
    return rows[columns].astype({'gender': 'category', 'high_spec': 'category'})


trainings = {
    'as it is': (known(train), train['placed'], None),
    'class weights': (known(train), train['placed'], 'balanced'),
    'SMOTE': (*SMOTENC('auto', random_state=0).fit_resample(known(train), train['placed']), None),
    'synthetic rows': (known(balanced), balanced['placed'], None),
}
for label, (rows, is_placed, weight) in trainings.items():
    classifier = HistGradientBoostingClassifier(class_weight=weight, random_state=0)
    classifier.fit(rows, is_placed)
    score = classifier.predict_proba(known(test))[:, 1]
    # Real rows that neither the classifier nor the synthesizer has seen.
    auc = roc_auc_score(test['placed'], score)
    print(f'{label}: {int((~is_placed).sum())} of {len(rows)} not placed, ROC AUC {auc:.2f}')
