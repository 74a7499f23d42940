"""Flows: vector fields, their solution by diffrax or in reduced coordinates, splittings, depth."""

from imr.flow.depth import DepthIsTime as DepthIsTime
from imr.flow.depth import depth_is_time as depth_is_time
from imr.flow.fields import closed_field as closed_field
from imr.flow.fields import gradient_field as gradient_field
from imr.flow.fields import sphere_field as sphere_field
from imr.flow.fields import split_fields as split_fields
from imr.flow.integrate import Result as Result
from imr.flow.moving import joint_field as joint_field
from imr.flow.moving import linear_path as linear_path
from imr.flow.moving import path_field as path_field
from imr.flow.reduced import solve_reduced as solve_reduced
from imr.flow.solve import Flow as Flow
from imr.flow.solve import solve as solve
from imr.flow.splitting import lie_step as lie_step
from imr.flow.splitting import split_step as split_step
from imr.flow.splitting import strang_step as strang_step
from imr.flow.steady import solve_to_steady_state as solve_to_steady_state
