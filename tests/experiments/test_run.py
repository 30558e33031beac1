"""x"""
import time
from tests.experiments.conftest import toy_words
def test_a(program, tmp_path):
    o=[]
    for name in "ab":
        t=time.time()
        r = program("run", *toy_words(tmp_path, name=name))
        o=o+[time.time()-t, r.status,r.err[-1500:],r.out]
    print(*o);assert 0
