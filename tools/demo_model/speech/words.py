"""Common English words with their phones, and random sentences of them: the dictionary of the formant voice.

Phones are ARPABET in General American, in flite's lower-case names. The words were chosen for visible mouth
movements: they contain all vowels and many of p, b, m, f, v, w and th.
"""

from __future__ import annotations

from functools import lru_cache
from types import MappingProxyType

import numpy as np

_NOUNS = """
man=m.ae.n mother=m.ah.dh.er father=f.aa.dh.er brother=b.r.ah.dh.er baby=b.ey.b.iy woman=w.uh.m.ax.n
people=p.iy.p.ax.l boy=b.oy friend=f.r.eh.n.d farmer=f.aa.r.m.er painter=p.ey.n.t.er doctor=d.aa.k.t.er
teacher=t.iy.ch.er driver=d.r.ay.v.er captain=k.ae.p.t.ax.n king=k.ih.ng poet=p.ow.ax.t bird=b.er.d
bear=b.eh.r wolf=w.uh.l.f fish=f.ih.sh mouse=m.aw.s horse=hh.ao.r.s puppy=p.ah.p.iy monkey=m.ah.ng.k.iy
beaver=b.iy.v.er camel=k.ae.m.ax.l goat=g.ow.t sheep=sh.iy.p apple=ae.p.ax.l banana=b.ax.n.ae.n.ax
bread=b.r.eh.d butter=b.ah.t.er coffee=k.ao.f.iy pepper=p.eh.p.er soup=s.uw.p melon=m.eh.l.ax.n
honey=hh.ah.n.iy potato=p.ax.t.ey.t.ow water=w.ao.t.er wine=w.ay.n table=t.ey.b.ax.l window=w.ih.n.d.ow
house=hh.aw.s garden=g.aa.r.d.ax.n kitchen=k.ih.ch.ax.n bottle=b.aa.t.ax.l basket=b.ae.s.k.ax.t
lamp=l.ae.m.p piano=p.iy.ae.n.ow paper=p.ey.p.er book=b.uh.k letter=l.eh.t.er picture=p.ih.k.ch.er
movie=m.uw.v.iy music=m.y.uw.z.ih.k voice=v.oy.s movement=m.uw.v.m.ax.n.t number=n.ah.m.b.er
problem=p.r.aa.b.l.ax.m answer=ae.n.s.er family=f.ae.m.ax.l.iy village=v.ih.l.ih.jh river=r.ih.v.er
mountain=m.aw.n.t.ax.n valley=v.ae.l.iy beach=b.iy.ch island=ay.l.ax.n.d harbor=hh.aa.r.b.er boat=b.ow.t
bridge=b.r.ih.jh road=r.ow.d wagon=w.ae.g.ax.n bicycle=b.ay.s.ih.k.ax.l map=m.ae.p moon=m.uw.n
cloud=k.l.aw.d storm=s.t.ao.r.m summer=s.ah.m.er winter=w.ih.n.t.er evening=iy.v.n.ih.ng
morning=m.ao.r.n.ih.ng flower=f.l.aw.er leaf=l.iy.f wood=w.uh.d stone=s.t.ow.n fire=f.ay.er
coat=k.ow.t hat=hh.ae.t pocket=p.aa.k.ax.t money=m.ah.n.iy shop=sh.aa.p market=m.aa.r.k.ax.t
office=ao.f.ax.s room=r.uw.m door=d.ao.r wall=w.ao.l box=b.aa.k.s toy=t.oy drum=d.r.ah.m song=s.ao.ng
"""
_ADJECTIVES = """
big=b.ih.g small=s.m.ao.l beautiful=b.y.uw.t.ax.f.ax.l white=w.ay.t black=b.l.ae.k brown=b.r.aw.n
blue=b.l.uw green=g.r.iy.n warm=w.ao.r.m cold=k.ow.l.d heavy=hh.eh.v.iy empty=eh.m.p.t.iy full=f.uh.l
famous=f.ey.m.ax.s happy=hh.ae.p.iy quiet=k.w.ay.ax.t loud=l.aw.d simple=s.ih.m.p.ax.l wild=w.ay.l.d
broken=b.r.ow.k.ax.n open=ow.p.ax.n old=ow.l.d young=y.ah.ng brave=b.r.ey.v hungry=hh.ah.ng.g.r.iy
purple=p.er.p.ax.l pretty=p.r.ih.t.iy sour=s.aw.er smooth=s.m.uw.dh wooden=w.uh.d.ax.n golden=g.ow.l.d.ax.n
silver=s.ih.l.v.er tiny=t.ay.n.iy huge=hh.y.uw.jh lovely=l.ah.v.l.iy bitter=b.ih.t.er wet=w.eh.t
dry=d.r.ay deep=d.iy.p narrow=n.eh.r.ow five=f.ay.v seven=s.eh.v.ax.n
"""
_VERBS = """
saw=s.ao found=f.aw.n.d wanted=w.aa.n.t.ax.d bought=b.ao.t moved=m.uw.v.d painted=p.ey.n.t.ax.d
followed=f.aa.l.ow.d watched=w.aa.ch.t carried=k.eh.r.iy.d opened=ow.p.ax.n.d loved=l.ah.v.d
remembered=r.ax.m.eh.m.b.er.d forgot=f.er.g.aa.t covered=k.ah.v.er.d heard=hh.er.d made=m.ey.d
measured=m.eh.zh.er.d broke=b.r.ow.k brought=b.r.ao.t borrowed=b.aa.r.ow.d chose=ch.ow.z pushed=p.uh.sh.t
pulled=p.uh.l.d dropped=d.r.aa.p.t showed=sh.ow.d sold=s.ow.l.d fed=f.eh.d met=m.eh.t passed=p.ae.s.t
caught=k.ao.t washed=w.aa.sh.t feared=f.ih.r.d enjoyed=eh.n.jh.oy.d kept=k.eh.p.t missed=m.ih.s.t
visited=v.ih.z.ax.t.ax.d shared=sh.eh.r.d described=d.ih.s.k.r.ay.b.d threw=th.r.uw
"""
_ADVERBS = """
slowly=s.l.ow.l.iy quickly=k.w.ih.k.l.iy again=ax.g.eh.n today=t.ax.d.ey tomorrow=t.ax.m.aa.r.ow
yesterday=y.eh.s.t.er.d.ey always=ao.l.w.ey.z never=n.eh.v.er maybe=m.ey.b.iy before=b.ih.f.ao.r
above=ax.b.ah.v away=ax.w.ey now=n.aw carefully=k.eh.r.f.ax.l.iy together=t.ax.g.eh.dh.er
probably=p.r.aa.b.ax.b.l.iy finally=f.ay.n.ax.l.iy twice=t.w.ay.s outside=aw.t.s.ay.d below=b.ih.l.ow
"""
_PLACES = """
in=ih.n by=b.ay near=n.ih.r behind=b.ih.hh.ay.n.d above=ax.b.ah.v over=ow.v.er under=ah.n.d.er from=f.r.ah.m
with=w.ih.dh for=f.ao.r beyond=b.iy.aa.n.d about=ax.b.aw.t
"""
_ARTICLES = "the=dh.ax a=ax my=m.ay your=y.ao.r our=aw.er every=eh.v.r.iy this=dh.ih.s one=w.ah.n some=s.ah.m"
_JOINS = "and=ae.n.d but=b.ah.t because=b.ih.k.ao.z while=w.ay.l when=w.eh.n after=ae.f.t.er if=ih.f so=s.ow"
_SUBJECTS = """
i=ay you=y.uw we=w.iy they=dh.ey she=sh.iy he=hh.iy nobody=n.ow.b.aa.d.iy everybody=eh.v.r.iy.b.aa.d.iy
"""
_OPENERS = """
well=w.eh.l yes=y.eh.s no=n.ow please=p.l.iy.z hello=hh.ax.l.ow oh=ow look=l.uh.k welcome=w.eh.l.k.ax.m
perhaps=p.er.hh.ae.p.s remember=r.ax.m.eh.m.b.er goodbye=g.uh.d.b.ay wow=w.aw
"""

# Letters to phones, longest first, for words that are not listed above. A rough approximation.
_SPELLING_TABLE = """
tion=sh.ax.n igh=ay th=th sh=sh ch=ch ph=f wh=w ck=k ng=ng qu=k.w ee=iy ea=iy oo=uw ou=aw ow=ow oi=oy oy=oy
ai=ey ay=ey ar=aa.r er=er ir=er or=ao.r ur=er au=ao aw=ao a=ae b=b c=k d=d e=eh f=f g=g h=hh i=ih j=jh k=k
l=l m=m n=n o=aa p=p q=k r=r s=s t=t u=ah v=v w=w x=k.s y=iy z=z
"""


@lru_cache(maxsize=1)
def _classes() -> MappingProxyType[str, dict[str, tuple[str, ...]]]:
    """Map word classes to words and words to phones."""
    lists = {
        "noun": _NOUNS,
        "adjective": _ADJECTIVES,
        "verb": _VERBS,
        "adverb": _ADVERBS,
        "place": _PLACES,
        "article": _ARTICLES,
        "join": _JOINS,
        "subject": _SUBJECTS,
        "opener": _OPENERS,
    }
    return MappingProxyType({name: _parse(text) for name, text in lists.items()})


@lru_cache(maxsize=1)
def _spelling() -> MappingProxyType[str, tuple[str, ...]]:
    """Map letters to phones."""
    return MappingProxyType(_parse(_SPELLING_TABLE))


def _parse(text: str) -> dict[str, tuple[str, ...]]:
    return {name: tuple(phones.split(".")) for name, phones in (item.split("=") for item in text.split())}


def vocabulary() -> dict[str, tuple[str, ...]]:
    """Map every word to its phones."""
    return {word: phones for words in _classes().values() for word, phones in words.items()}


def phones_of(word: str) -> tuple[str, ...]:
    """Phones of a lower-case word, from the list or else by rough spelling rules; () for a word without letters."""
    known = vocabulary().get(word)
    if known is not None:
        return known
    spelling = _spelling()
    phones: list[str] = []
    i = 0
    letters = word[:-1] if len(word) > 3 and word.endswith("e") else word  # a silent e
    while i < len(letters):
        size = next((n for n in (4, 3, 2, 1) if letters[i : i + n] in spelling), 0)
        phones += spelling.get(letters[i : i + size], ())
        i += size or 1
    return tuple(phones)


def sentence(rng: np.random.Generator) -> str:
    """Draw a grammatical sentence of 4 to about 16 words; only its first letter is a capital."""

    def pick(name: str) -> str:
        words = list(_classes()[name])
        return words[rng.integers(len(words))]

    def thing() -> str:
        words = [*([pick("adjective")] if rng.random() < 0.6 else []), pick("noun")]
        article = pick("article")
        return " ".join(["an" if article == "a" and words[0][0] in "aeiou" else article, *words])

    def clause() -> str:
        parts = [pick("subject") if rng.random() < 0.4 else thing(), pick("verb"), thing()]
        if rng.random() < 0.5:
            parts += [pick("place"), thing()]
        elif rng.random() < 0.5:
            parts.append(pick("adverb"))
        return " ".join(parts)

    text = clause()
    if rng.random() < 0.3:
        text = f"{pick('opener')}, {text}"
    if rng.random() < 0.3:
        text = f"{text}, {pick('join')} {clause()}"
    return f"{text[0].upper()}{text[1:]}{'?' if rng.random() < 0.1 else '.'}"
