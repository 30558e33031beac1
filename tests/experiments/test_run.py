"""x"""
import time
from tests.experiments.conftest import toy_words
def test_a(program, tmp_path):
    for name in "ab":
        t=time.time()
        r = program("run", *toy_words(tmp_path, name=name))
        print(time.time()-t, r.status);print(r.err[-1500:]);print(r.out)
    assert 0
