"""Languages by the codes that data sets use for them, as the English names that a config uses."""

import re

# More codes for what Whisper's list has by an ISO 639-1 code: of 639-3, of 639-2, of FLORES, newer.
ALSO = """
af afr, am amh, ar ara arb, as asm, az aze azj, ba bak, be bel, bg bul, bn ben, bo bod tib, br bre,
bs bos, ca cat, cs ces cze, cy cym wel, da dan, de deu ger, el ell gre, en eng, es spa,
et est ekk, eu eus baq, fa fas per pes, fi fin, fo fao, fr fra fre, gl glg, gu guj, ha hau,
he heb iw, hi hin, hr hrv, ht hat, hu hun, hy hye arm, id ind, is isl ice, it ita, ja jpn,
jw jav jv, ka kat geo, kk kaz, km khm, kn kan, ko kor, la lat, lb ltz, ln lin, lo lao, lt lit,
lv lav lvs, mg mlg plt, mi mri mao, mk mkd mac, ml mal, mn mon khk, mr mar, ms msa may zsm,
mt mlt, my mya bur, ne nep npi, nl nld dut, no nor nb nob nn nno, oc oci, pa pan, pl pol,
ps pus, pt por, ro ron rum, ru rus, sa san, sd snd, si sin, sk slk slo, sl slv, sn sna, so som,
sq sqi alb, sr srp, su sun, sv swe, sw swa swh, ta tam, te tel, tg tgk, th tha, tk tuk, tl tgl,
tr tur, tt tat, uk ukr, ur urd, uz uzb uzn, vi vie, yi yid, yo yor, zh zho chi cmn
"""
SAME = {code: first for first, *others in map(str.split, ALSO.split(",")) for code in others}
# What that list lacks.
LACKING = {
    "eo": "esperanto", "epo": "esperanto", "ga": "irish", "gle": "irish", "ibo": "igbo",
    "ig": "igbo", "kin": "kinyarwanda", "kir": "kyrgyz", "ky": "kyrgyz", "lg": "luganda",
    "lug": "luganda", "ny": "chichewa", "nya": "chichewa", "om": "oromo", "orm": "oromo",
    "rw": "kinyarwanda", "ti": "tigrinya", "tir": "tigrinya", "tn": "tswana", "tsn": "tswana",
    "ug": "uyghur", "uig": "uyghur", "wo": "wolof", "wol": "wolof", "xh": "xhosa", "xho": "xhosa",
    "zu": "zulu", "zul": "zulu",
}  # fmt: skip


def spelt_out(language: str) -> str:
    """The English name of a language given by that or by an ISO code: `pt-BR` and `por`,
    portuguese; both written forms of Norwegian are norwegian.
    """
    from transformers.models.whisper.tokenization_whisper import LANGUAGES

    plain = language.strip().lower()
    code = re.split("[-_]", plain)[0]
    name: str = LACKING.get(code) or LANGUAGES.get(SAME.get(code, code), plain)
    return name
