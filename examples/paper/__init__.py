"""The paper's experiments as code: data sets, backbones, trainings; Table 2 and Figures 2 and 3 from their runs."""
