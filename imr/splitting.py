"""Operator splitting: stages, substeps, and a solver of diffrax that steps through them."""

from imr.flow.splitting import Splitting as Splitting
from imr.flow.splitting import euler as euler
from imr.flow.splitting import exact as exact
from imr.flow.splitting import lie_stages as lie_stages
from imr.flow.splitting import lie_step as lie_step
from imr.flow.splitting import midpoint as midpoint
from imr.flow.splitting import rk4 as rk4
from imr.flow.splitting import split_step as split_step
from imr.flow.splitting import strang_stages as strang_stages
from imr.flow.splitting import strang_step as strang_step
from imr.flow.splitting import triple_jump as triple_jump
