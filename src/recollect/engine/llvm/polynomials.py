"""The numbers behind `functions.py`: coefficients, lowest power first, and where each function ends.

Where it says "fitted", the coefficients interpolate the function at the Chebyshev points of the interval,
computed with 40 digits; the error named is the largest of the interpolation, before any rounding.
"""

from __future__ import annotations

import math

LN2 = math.log(2.0)
# Adding and subtracting this number rounds to a whole number and leaves it in the low bits.
ROUND = {"float32": 1.5 * 2.0**23, "float64": 1.5 * 2.0**52}
MANTISSA = {"float32": 23, "float64": 52}
BIAS = {"float32": 127, "float64": 1023}
SMALLEST = {"float32": 2.0**-126, "float64": 2.0**-1022}  # what is smaller is denormal

# (e^r - 1 - r) / r^2 on |r| <= ln(2)/2. Fitted: 1e-8 and 2e-17 of e^r, 2.5e-8 and 4e-17 of e^r - 1.
_EXP = {
    "float32": (
        5.000000000e-01,
        1.666657685e-01,
        4.166655444e-02,
        8.363202972e-03,
        1.392621347e-03,
    ),
    "float64": (
        0.5000000000000001,
        0.16666666666666669,
        0.04166666666662399,
        0.008333333333330051,
        0.0013888888917281794,
        0.00019841269863105968,
        2.480152119021773e-05,
        2.7557268378684192e-06,
        2.7620138719733994e-07,
        2.5100424157005067e-08,
    ),
}
# (e^fr - 1 - fr) / fr^2 by f, on |fr| <= ln(2)/2: the same polynomials.
EXP = {
    factor: {dtype: tuple(c * factor ** (power + 1) for power, c in enumerate(table)) for dtype, table in _EXP.items()}
    for factor in (1.0, -1.0, 2.0)
}
# ln 2 in two parts: the first has trailing zeros, so that n * high is exact.
LN2_PARTS = {
    "float32": (0.693359375, -2.12194440e-4),
    "float64": (6.93147180369123816490e-1, 1.90821492927058770002e-10),
}
# exp overflows beyond the second and is 0 (or denormal, which counts as 0) before the first; so does exp2.
EXP_RANGE = {"float32": (-87.0, 88.7228391), "float64": (-708.0, 709.782712893384)}
EXP2_RANGE = {"float32": (-126.0, 128.0), "float64": (-1022.0, 1024.0)}
# sinh and cosh overflow beyond.
SINH_LIMIT = {"float32": 89.4159851, "float64": 710.4758600739439}
# tanh is 1 to the last bit beyond.
TANH_LIMIT = {"float32": 10.0, "float64": 20.0}

# Terms of artanh's series for arguments up to (sqrt 2 - 1)/(sqrt 2 + 1) and up to 1/3.
LOG_TERMS = {"float32": 5, "float64": 11}
SOFTPLUS_TERMS = {"float32": 8, "float64": 17}
# x + 1 and x - 1 are x beyond, and so is sqrt(x^2 + 1) to the accuracy of its logarithm.
LARGE = {"float32": 2.0**26, "float64": 2.0**55}

# (atan(t)/t - 1) / t^2 as a polynomial in t^2 on t <= tan(pi/8). Fitted: 4e-10 and 6e-18 of atan(t).
ATAN = {
    "float32": (
        -3.333333176e-01,
        1.999954048e-01,
        -1.426395560e-01,
        1.074373149e-01,
        -6.451928208e-02,
    ),
    "float64": (
        -0.3333333333333333,
        0.1999999999999552,
        -0.14285714284666542,
        0.11111111015256361,
        -0.09090904578123903,
        0.07692183190826087,
        -0.06664511447381948,
        0.0585814891280221,
        -0.0508544973794026,
        0.03923165829558719,
        -0.01917688711906226,
    ),
}

# erf(x)/x - 1 as a polynomial in x^2 on x <= 1/2. Fitted: 1.5e-9 and 5e-18.
ERF = {
    "float32": (
        1.283791656e-01,
        -3.761260901e-01,
        1.128283143e-01,
        -2.675773274e-02,
        4.719082567e-03,
    ),
    "float64": (
        0.12837916709551256,
        -0.37612638903183476,
        0.11283791670925353,
        -0.026866170632887928,
        0.00522397737302147,
        -0.0008548297753674966,
        0.00012053335124353741,
        -1.4845849259707869e-05,
        1.4725865480556744e-06,
    ),
}
# (x + p) e^(x^2) erfc(x) with p = ERFC_POLE as a polynomial in t = (x - p)/(x + p), which maps 1/2 <= x < oo into
# a finite interval; for x up to ERFC_LIMIT, beyond which erfc is 0. Fitted: 8e-9 and 6e-17.
ERFC_POLE = 2.5
ERFC_LIMIT = {"float32": 10.2, "float64": 27.3}
ERFC = {
    "float32": (
        1.054031818e00,
        -8.046519062e-01,
        4.539143862e-01,
        -1.712494146e-01,
        2.835600724e-02,
        8.378513083e-03,
        -4.780365425e-03,
        -3.921679309e-04,
        5.946675700e-04,
    ),
    "float64": (
        1.054031820305718,
        -0.804651849439148,
        0.45391411664808523,
        -0.1712511452461613,
        0.028361550132713253,
        0.008393044306934877,
        -0.004818785542187672,
        -0.00043920834448665563,
        0.0007026939838966221,
        5.8308514205091346e-05,
        -0.00011260692562531876,
        -1.9535939524071604e-05,
        1.82548639160518e-05,
        6.765885277780489e-06,
        -2.3656720169662408e-06,
        -1.9833007638768117e-06,
        6.052695609624227e-08,
        4.6569085642267083e-07,
        5.971207140073963e-08,
        -7.160681469849859e-08,
        -5.031775661227337e-09,
    ),
}
